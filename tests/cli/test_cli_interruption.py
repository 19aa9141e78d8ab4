"""Ctrl-C, SIGTERM and SIGKILL: the command ends, no process is left, and no file is lost."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from ray_l4.store.run_directory import RunDirectory
from tests.cli.background_command import RAY_AGENTS, BackgroundCommand
from tests.cli.cli_fixtures import IN_PROCESS, write_experiment

pytestmark = pytest.mark.end_to_end

EPOCHS = 4
MOMENTS: dict[str, Callable[[Path], bool]] = {
    "imports": lambda run: True,
    "the start": lambda run: (run / "logs" / "command.log").is_file(),
    "training": lambda run: "learning" in (run / "logs" / "coordinator.log").read_text(),
    "checkpoints": lambda run: any((run / "checkpoints").iterdir()),
}
"""What holds of a run directory when a run in one process is stopped."""

Start = Callable[..., BackgroundCommand]


def start_long_run(start: Start, folder: Path, method: str) -> BackgroundCommand:
    """Start a run on Ray and wait until it learns its second task, which would take minutes."""
    stream = [{"name": "mini.woz", "train": 24, "test": 6}, {"name": "mini.rest", "train": 5000, "test": 6}]
    path = write_experiment(folder, method=method, stream=stream, training={"epochs": EPOCHS, "batch_size": 4})
    command = start("run", path, "--run-dir", folder / "run", "--set", "cluster.students.cpus=0.5")
    state = folder / "run" / "state.json"
    command.wait_until(lambda: state.is_file() and json.loads(state.read_text())["stages_done"] == 1)
    return command


@pytest.mark.parametrize(
    ("number", "moment"),
    [
        *((signal.SIGINT, moment) for moment in MOMENTS),
        (signal.SIGTERM, "imports"),
        (signal.SIGTERM, "training"),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_a_run_in_one_process_ends_with_130_whatever_it_does(
    tmp_path: Path, start: Start, number: signal.Signals, moment: str
) -> None:
    """Its threads are in PyTorch, Arrow and TensorBoard; the process must not abort when they end."""
    stream = [{"name": "mini.woz", "train": 24, "test": 6}, {"name": "mini.rest", "train": 5000, "test": 6}]
    path = write_experiment(tmp_path, stream=stream, evaluation={"when": "epoch", "max_new_tokens": 6})
    run = tmp_path / "run"
    command = start("run", path, "--run-dir", run, "--cluster", IN_PROCESS)
    time.sleep(0.3)
    command.wait_until(lambda: _holds(MOMENTS[moment], run))
    command.send(number, to_group=number == signal.SIGINT)
    code, output, errors = command.end()
    assert code == 130, errors
    assert "Traceback" not in output + errors and "terminate called" not in errors
    if (run / "config.yaml").is_file():
        assert f"ray-l4 resume {run}" in (run / "logs" / "command.log").read_text()
        assert not list(run.rglob("*.part")), "a file was left unfinished"
        with RunDirectory.open(run).lock():
            pass  # the command no longer holds it


def _holds(condition: Callable[[Path], bool], run: Path) -> bool:
    try:
        return condition(run)
    except FileNotFoundError:
        return False


@pytest.mark.ray
@pytest.mark.parametrize(
    ("number", "method"), [(signal.SIGINT, "l4"), (signal.SIGTERM, "finetune")], ids=["Ctrl-C", "SIGTERM"]
)
def test_an_interrupted_command_leaves_no_process_and_keeps_what_was_written(
    tmp_path: Path, start: Start, number: signal.Signals, method: str
) -> None:
    command = start_long_run(start, tmp_path, method)
    # A terminal sends Ctrl-C to the whole process group, including Ray; a scheduler sends SIGTERM to the command alone.
    command.send(number, to_group=number == signal.SIGINT)
    code, output, errors = command.end()
    assert code == 130, errors
    assert "ray-l4 resume" in output
    assert "Traceback" not in output + errors
    assert command.wait_until_gone() == []
    run = RunDirectory.open(tmp_path / "run")
    assert run.state().stages_done == 1
    AutoModelForCausalLM.from_pretrained(run.checkpoint(0, EPOCHS, 0))
    assert not list(run.path.rglob("*.part")), "a file was left unfinished"


@pytest.mark.ray
def test_a_killed_command_leaves_no_process_and_whole_files(tmp_path: Path, start: Start) -> None:
    command = start_long_run(start, tmp_path, "l4")
    command.send(signal.SIGKILL)
    command.end()
    assert command.wait_until_gone(RAY_AGENTS) == [], "the agents are waited for after the other tests"
    run = RunDirectory.open(tmp_path / "run")
    assert run.state().stages_done == 1
    AutoModelForCausalLM.from_pretrained(run.checkpoint(0, EPOCHS, 1))
    with run.lock():
        pass  # the killed command does not hold it
