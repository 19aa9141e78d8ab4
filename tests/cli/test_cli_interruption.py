"""Ctrl-C, SIGTERM and SIGKILL: the command ends, no process is left, and no file is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from ray_l4.store.run_directory import RunDirectory
from tests.cli.cli_fixtures import command, write_experiment

pytestmark = [pytest.mark.end_to_end, pytest.mark.ray]

START_LIMIT = 200.0
"""Seconds for a command to get to its second task."""
END_LIMIT = 150.0
"""Seconds for all processes to end: Ray's own notice the death of the command slowly on a busy machine."""
MARK = "RAY_L4_TEST_MARK"
EPOCHS = 4


def marked_environment(mark: str) -> dict[str, str]:
    """Return an environment that carries ``mark``, in which Ray's agents do not outlive their cluster for a minute."""
    return os.environ | {MARK: mark, "RAY_gcs_rpc_server_reconnect_timeout_s": "3"}


def marked_processes(mark: str) -> list[int]:
    """Return the processes whose environment carries ``mark``: the command and all its descendants."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                environment = (entry / "environ").read_bytes()
                state = (entry / "stat").read_text().rsplit(")", 1)[1].split()[0]
            except OSError:  # the process has just ended
                continue
            if f"{MARK}={mark}".encode() in environment and state != "Z":
                found.append(int(entry.name))
    return found


def wait_until_gone(mark: str) -> list[int]:
    """Wait until all marked processes have ended; return those that are left after ``END_LIMIT``."""
    deadline = time.monotonic() + END_LIMIT
    while marked_processes(mark) and time.monotonic() < deadline:
        time.sleep(0.2)
    return marked_processes(mark)


def start_long_run(folder: Path, mark: str, method: str) -> subprocess.Popen[str]:
    """Start a run on Ray and wait until it learns its second task, which would take minutes."""
    stream = [{"name": "mini.woz", "train": 24, "test": 6}, {"name": "mini.rest", "train": 5000, "test": 6}]
    path = write_experiment(folder, method=method, stream=stream, training={"epochs": EPOCHS, "batch_size": 4})
    process = subprocess.Popen(
        command("run", path, "--run-dir", folder / "run", "--set", "cluster.students.cpus=0.5"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=marked_environment(mark),
        start_new_session=True,
    )
    deadline = time.monotonic() + START_LIMIT
    while not _second_task_has_begun(folder / "run"):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "the run did not get to its second task"
        time.sleep(0.2)
    return process


def _second_task_has_begun(run: Path) -> bool:
    state = run / "state.json"
    return state.is_file() and json.loads(state.read_text())["stages_done"] == 1


@pytest.fixture
def mark(request: pytest.FixtureRequest) -> Iterator[str]:
    """A name for this test's processes; kills those that are left at the end."""
    name = f"{os.getpid()}-{request.node.name}"
    yield name
    for process in marked_processes(name):
        os.kill(process, signal.SIGKILL)


@pytest.mark.parametrize(
    ("number", "method"), [(signal.SIGINT, "l4"), (signal.SIGTERM, "finetune")], ids=["Ctrl-C", "SIGTERM"]
)
def test_an_interrupted_command_leaves_no_process_and_keeps_what_was_written(
    tmp_path: Path, mark: str, number: signal.Signals, method: str
) -> None:
    process = start_long_run(tmp_path, mark, method)
    # A terminal sends Ctrl-C to the whole process group, including Ray; a scheduler sends SIGTERM to the command alone.
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    output, errors = process.communicate(timeout=END_LIMIT)
    assert process.returncode == 130, errors
    assert "ray-l4 resume" in output
    assert "Traceback" not in output + errors
    assert wait_until_gone(mark) == []
    run = RunDirectory.open(tmp_path / "run")
    assert run.state().stages_done == 1
    AutoModelForCausalLM.from_pretrained(run.checkpoint(0, EPOCHS, 0))
    assert not list(run.path.rglob("*.part")), "a file was left unfinished"


def test_a_killed_command_leaves_no_process_and_whole_files(tmp_path: Path, mark: str) -> None:
    process = start_long_run(tmp_path, mark, "l4")
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=END_LIMIT)
    assert wait_until_gone(mark) == []
    run = RunDirectory.open(tmp_path / "run")
    assert run.state().stages_done == 1
    AutoModelForCausalLM.from_pretrained(run.checkpoint(0, EPOCHS, 1))
    with run.lock():
        pass  # the killed command does not hold it
