"""``ray-l4 methods`` prints the table of methods."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from ray_l4.cli.main import app
from ray_l4.methods import METHODS


def lines(width: int) -> list[str]:
    result = CliRunner().invoke(app, ["methods"], env={"COLUMNS": str(width)}, catch_exceptions=False)
    assert result.exit_code == 0
    return [line.rstrip() for line in result.stdout.splitlines()]


@pytest.mark.parametrize("width", [80, 150])
def test_no_method_name_is_truncated(width: int) -> None:
    printed = lines(width)
    assert max(map(len, printed)) <= width
    assert "…" not in "".join(printed)
    middle, end = (place for place, line in enumerate(printed) if not line)
    for part in (printed[:middle], printed[middle + 1 : end]):
        begins = [line.split()[0] for line in part[1:] if not line.startswith(" ")]
        assert begins == list(METHODS)
    assert len(printed[middle + 2 : end]) == len(METHODS)  # one line each, however narrow


def test_rows_match_the_method_table() -> None:
    printed = lines(150)
    assert f"lamol         {METHODS['lamol'].summary}" in printed
    assert "l4-released   2        qa+lm without replay each other   generated  in turn" in printed
    assert "multi-seq-kd  1        qa+lm always         task teacher none       all at once" in printed


def test_the_graphs_are_listed_below_it() -> None:
    assert lines(150)[-1].startswith("each other: every student from all others, or as peers.topology says (ring, star")
