"""Fixtures of the tests of the command line."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator

import pytest

from tests.cli.background_command import RAY_AGENTS, BackgroundCommand
from tests.cli.cli_fixtures import InThisProcess


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> InThisProcess:
    """Function that runs ``ray-l4`` with its arguments, in the process of the test."""
    return InThisProcess(monkeypatch, capsys)


@pytest.fixture(scope="session")
def _all_commands() -> Iterator[list[BackgroundCommand]]:
    """All commands that tests started. At the end nothing is left of them, not even of Ray's agents."""
    commands: list[BackgroundCommand] = []
    yield commands
    assert [left for command in commands if (left := command.wait_until_gone())] == [], "processes are left"


@pytest.fixture
def start(
    request: pytest.FixtureRequest, _all_commands: list[BackgroundCommand]
) -> Iterator[Callable[..., BackgroundCommand]]:
    """Function that starts ``ray-l4`` with its arguments beside the test. What is left at the end is killed."""
    own: list[BackgroundCommand] = []

    def start(*arguments: object) -> BackgroundCommand:
        own.append(BackgroundCommand(f"{os.getpid()}-{request.node.name}-{len(own)}", *arguments))
        return own[-1]

    yield start
    for command in own:
        for process in command.left(RAY_AGENTS):
            os.kill(process, signal.SIGKILL)
    _all_commands.extend(own)
