"""Completion in the shell: commands, options and the names of profiles."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from ray_l4.cli.main import app
from tests.cli.cli_fixtures import InThisProcess


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("ray-l4 sw", {"sweep"}),
        ("ray-l4 data s", {"show"}),
        ("ray-l4 run x.yaml --run", {"--run-dir"}),
        ("ray-l4 run x.yaml --cluster two_", {"two_by_four", "two_gpus"}),
    ],
)
def test_the_shell_completes_what_the_command_line_knows(words: str, expected: set[str]) -> None:
    asked = {"_RAY_L4_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    result = CliRunner().invoke(app, [], prog_name="ray-l4", env=asked)
    assert result.exit_code == 0 and set(result.stdout.split()) == expected


def test_completion_can_be_installed(command: InThisProcess) -> None:
    shown = command("--help").stdout
    assert "--install-completion" in shown and "--show-completion" in shown
