"""``--supervise``: what ends Ray's session does not end the run; and nothing outlives a command that is killed."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import pytest

from ray_l4.store.run_directory import RunDirectory
from tests.cli.background_command import BackgroundCommand
from tests.cli.cli_fixtures import IN_PROCESS, ray_l4, write_experiment
from tests.cli.test_cli_interruption import Start
from tests.run.run_fixtures import assert_equal

pytestmark = [pytest.mark.end_to_end, pytest.mark.ray]

SETTINGS = ["--set", "cluster.students.cpus=0.5", "--set", "cluster.evaluators.count=1"]
STREAM = [{"name": "mini.woz", "train": 24, "test": 6}, {"name": "mini.rest", "train": 1600, "test": 6}]


def process_with(command: BackgroundCommand, words: str) -> int:
    """The process of this command whose last argument this is."""
    for process in command.left():
        if words.encode() in Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")[-2:]:
            return process
    raise AssertionError(f"no process {words}")


def begin_second_stage(start: Start, folder: Path, *options: str) -> BackgroundCommand:
    """A run on Ray that learns its second task."""
    path = write_experiment(folder, stream=STREAM)
    command = start("run", path, "--run-dir", folder / "run", *SETTINGS, *options)
    log = folder / "run" / "logs" / "coordinator.log"
    command.wait_until(lambda: log.is_file() and "learning mini.rest" in log.read_text())
    return command


def test_a_run_outlives_a_command_that_hangs(tmp_path: Path, start: Start) -> None:
    """That it outlives its raylet and GCS is shown in tests/faults."""
    command = begin_second_stage(start, tmp_path, "--supervise", "--set", "cluster.timeouts.control=5")
    os.kill(process_with(command, "--no-supervise"), signal.SIGSTOP)
    code, output, errors = command.end()
    assert code == 0, errors
    assert "no sign of life for 5 s (timeouts.control)); it goes on in a new Ray session" in output
    assert (
        ray_l4("run", tmp_path / "experiment.yaml", "--cluster", IN_PROCESS, "--run-dir", tmp_path / "e").returncode
        == 0
    )
    assert_equal(RunDirectory.open(tmp_path / "run"), RunDirectory.open(tmp_path / "e"))


@pytest.mark.parametrize("supervised", [True, False])
def test_nothing_outlives_a_killed_command_by_ten_seconds(tmp_path: Path, start: Start, supervised: bool) -> None:
    command = begin_second_stage(start, tmp_path, "--supervise" if supervised else "--no-supervise")
    os.kill(command.process.pid, signal.SIGKILL)
    killed = time.monotonic()
    while command.left() and time.monotonic() < killed + 30.0:
        time.sleep(0.1)
    assert time.monotonic() - killed < 10.0, command.left()


def test_a_supervised_run_stops_once_when_all_processes_get_the_signal(tmp_path: Path, start: Start) -> None:
    """So a scheduler does it; the supervisor passes the signal on as well."""
    command = begin_second_stage(start, tmp_path, "--supervise")
    child = process_with(command, "--no-supervise")
    command.send(signal.SIGUSR1)
    os.kill(child, signal.SIGUSR1)
    code, output, errors = command.end()
    assert code == 130, errors
    assert re.search(r"to continue: ray-l4 resume", output)
    assert "Traceback" not in output + errors
    with RunDirectory.open(tmp_path / "run").lock():
        pass
