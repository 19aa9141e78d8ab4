"""The graph of an experiment in ``run --dry-run``, and the refusal of an impossible one."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from ray_l4.cli.main import app
from ray_l4.errors import ConfigError

REPOSITORY = Path(__file__).resolve().parents[2]
FOUR = REPOSITORY / "launch" / "experiments" / "quickstart-four-peers.yaml"


def dry_run(*overrides: str) -> list[str]:
    options = [part for text in ("cluster.exchange.transport=in_process", *overrides) for part in ("--set", text)]
    result = CliRunner().invoke(app, ["run", str(FOUR), "--dry-run", *options], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout.splitlines()


def graph(lines: list[str]) -> str:
    (line,) = (line for line in lines if "who learns from whom" in line)
    return line.removeprefix("# ")


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ((), "ring: every student from the one before it (0 learns from 3; 1 from 0; 2 from 1; 3 from 2)"),
        (
            ("peers.topology=star",),
            "star: all from student 0, and student 0 from all (0 learns from 1, 2, 3; 1 from 0; 2 from 0; 3 from 0)",
        ),
        (
            ("peers.topology=[[3, 0], [2, 0]]",),
            "as listed: 0 learns from 2, 3; 1 from nobody; 2 from nobody; 3 from nobody",
        ),
    ],
)
def test_a_dry_run_shows_who_learns_from_whom(overrides: tuple[str, ...], expected: str) -> None:
    assert graph(dry_run(*overrides)) == f"4 students; who learns from whom: {expected}"


def test_a_method_without_a_choice_of_graph_shows_its_own() -> None:
    one = dry_run("method=l2kd-word", "peers.topology=null", "peers.each=[]", "peers.count=1")
    assert graph(one) == (
        "1 student; who learns from whom: taught: every student from all frozen peers (0 learns from 1 (frozen))"
    )


def test_edges_from_a_file_are_part_of_the_printed_configuration(tmp_path: Path) -> None:
    (tmp_path / "edges").write_text("0 1\n")
    lines = dry_run(f"peers.topology={tmp_path / 'edges'}")
    at = lines.index("  topology:")
    assert lines[at + 1 : at + 3] == ["  - - 0", "    - 1"]


def test_an_impossible_graph_is_refused_first(tmp_path: Path) -> None:
    (tmp_path / "edges").write_text("0 1\n1 4\n")
    with pytest.raises(ConfigError, match=r"edges:2: \[1, 4\]: there is no peer 4: the 4 peers are numbered from 0"):
        dry_run(f"peers.topology={tmp_path / 'edges'}")
