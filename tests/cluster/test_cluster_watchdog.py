"""Processes that stand for those of Ray: which of them the watchdog ends, and which not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ray_l4.cluster.watchdog import pattern_of, processes_of

pytestmark = pytest.mark.processes

SLEEP = "import time; time.sleep(60)"
DEAF = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEP}"
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {DEAF!r}])"
COMMAND = """
import sys, time
from pathlib import Path
from ray_l4.cluster.watchdog import Watchdog
dog = Watchdog()
if sys.argv[1:]:
    dog.watch(Path(sys.argv[1]))
print("watched", flush=True)
time.sleep(60)
"""


@pytest.fixture
def spawn() -> Iterator[object]:
    """Start a Python process with these arguments; killed after the test."""
    with ExitStack() as ends:

        def start(*arguments: str, pipe: bool = False) -> subprocess.Popen[str]:
            process = subprocess.Popen(
                [sys.executable, "-c", *arguments], stdout=subprocess.PIPE if pipe else None, text=True
            )
            ends.callback(process.wait)
            ends.callback(process.kill)
            return process

        yield start


@pytest.mark.parametrize("known", [True, False], ids=["a session that has started", "killed while Ray starts"])
def test_after_kill_9_nothing_of_the_session_is_left_and_others_are_untouched(
    known: bool, tmp_path: Path, spawn: object
) -> None:
    assert callable(spawn)
    session = tmp_path / "ray" / "session_2026-01-01_00-00-00_000000_0"
    command = spawn(COMMAND, *([str(session)] if known else []), pipe=True)
    if not known:
        session = session.with_name(f"session_2026-01-01_00-00-00_000000_{command.pid}")
    (session / "logs").mkdir(parents=True)
    assert command.stdout.readline() == "watched\n"
    own = [
        spawn(SLEEP, f"--session-dir={session}"),
        spawn(DEAF, f"--logs-dir={session}/logs"),
        spawn(PARENT, f"--session-dir={session}"),
    ]
    os.kill(own[0].pid, signal.SIGSTOP)
    other = [spawn(SLEEP, f"--session-dir={session}1"), spawn(SLEEP, "--session-dir=/tmp/ray/session_1")]
    pattern = pattern_of(command.pid, [session] if known else [])
    deadline = time.monotonic() + 10.0
    while len(processes_of(pattern)) < 4 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(processes_of(pattern)) >= 4, "with the child of a process of Ray"
    command.kill()
    killed = time.monotonic()
    while any(process.poll() is None for process in own) and time.monotonic() < killed + 15.0:
        time.sleep(0.05)
    assert time.monotonic() - killed < 10.0
    assert processes_of(pattern) == []
    assert [process.poll() for process in other] == [None, None]
    while known and session.exists() and time.monotonic() < killed + 15.0:
        time.sleep(0.05)
    assert session.exists() != known


def test_an_editor_that_shows_a_log_does_not_belong_to_the_session(tmp_path: Path, spawn: object) -> None:
    assert callable(spawn)
    session = tmp_path / "session_2026-01-01_00-00-00_000000_7"
    process = spawn(SLEEP, str(session / "logs"))
    assert process.pid not in processes_of(pattern_of(7, [session]))
