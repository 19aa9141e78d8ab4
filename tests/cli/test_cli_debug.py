"""``--debug`` and ``RAY_L4_DEBUG``: the traceback of an error, which is otherwise one message."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.exceptions import RayTaskError

from ray_l4.cli import runs
from ray_l4.cli.failures import explain, print_failure, set_debug
from ray_l4.cli.main import app, main
from ray_l4.errors import ConfigError, PeerError
from ray_l4.workers.log import DEBUG_VARIABLE
from tests.cli.cli_fixtures import IN_PROCESS, InThisProcess, refused, write_experiment

MODEL, PEER = 4, 7
HEADER = "Traceback (most recent call last):"


@pytest.fixture(autouse=True)
def _own_process_state(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The entry point sets the handler of SIGTERM and the environment."""
    monkeypatch.setenv(DEBUG_VARIABLE, "0")
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("by", ["option", "environment"])
def test_a_failing_command_shows_its_traceback_only_on_request(
    command: InThisProcess, by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loss that not finite, found by a student in the thread that runs it."""
    path = write_experiment(tmp_path, optim={"variant": "torch", "lr": 1e30})
    words = ("run", path, "--cluster", IN_PROCESS, "--run-dir")
    refused(command(*words, tmp_path / "quiet"), PEER, "not finite")
    if by == "environment":
        monkeypatch.setenv(DEBUG_VARIABLE, "1")
    result = command(*(["--debug"] if by == "option" else []), *words, tmp_path / "loud")
    assert result.returncode == PEER
    assert HEADER in result.stderr
    assert "ray_l4/learner/" in result.stderr, "down to where it was raised"
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: ") and "not finite" in last, "the message comes last"


def test_causes_are_shown_too(command: InThisProcess, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    words = ("generate", tmp_path, "--task", "mini.woz")
    refused(command(*words), MODEL, str(tmp_path))
    result = command("--debug", *words)
    assert result.returncode == MODEL
    assert "\nThe above exception was the direct cause of the following exception:\n" in result.stderr
    assert result.stderr.count("\nray_l4.errors.ModelError: ") == 1


def test_the_processes_that_a_command_starts_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr("ray_l4.monitor.doctor.examine", lambda: seen.append(os.environ.get(DEBUG_VARIABLE)) or [])
    for options in ([], ["--debug"]):
        app([*options, "doctor"], standalone_mode=False)
    assert seen == [None, "1"]


def worker_error() -> Exception:
    """The error that Ray raises where the result of a failed call is waited for."""
    where = '  File "ray/_raylet.pyx", line 1, in ray._raylet.execute_task\n           ^^^^^^\n'
    frames = '  File "student.py", line 7, in forward\n    return model(batch)\n           ^^^^^^^^^^^^\n'
    text = f"{HEADER}\n{where}{frames}ValueError: no such row\n"
    error = RayTaskError("forward", text, ValueError("no such row"), "ray::Student.forward", 12, "10.0.0.1")
    raised = error.as_instanceof_cause()
    assert isinstance(raised, Exception)
    return raised


def test_the_traceback_of_a_remote_worker_is_printed_once_as_it_was(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        raise PeerError("student 0: ValueError: no such row") from worker_error()
    except PeerError as error:
        failure = error
    set_debug(False)
    print_failure(failure, str(failure))
    assert capsys.readouterr().err == "error: student 0: ValueError: no such row\n"
    set_debug(True)
    print_failure(failure, str(failure))
    printed = capsys.readouterr().err
    assert printed.count("ray::Student.forward()") == 1
    frame = '  File "student.py", line 7, in forward\n    return model(batch)\n           ^^^^^^^^^^^^\n'
    assert printed.count(f"{frame}ValueError: no such row\n") == 1
    assert "\n           ^^^^^^\n" not in printed, "the underline of a frame that Ray leaves out"
    assert "\x1b" not in printed
    assert printed.endswith("error: student 0: ValueError: no such row\n")


def test_a_defect_keeps_the_traceback_of_python(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise KeyError("a defect")

    monkeypatch.setattr(runs, "split_overrides", fails)
    monkeypatch.setattr(sys, "argv", ["ray-l4", "run", "any.yaml"])
    with pytest.raises(KeyError, match="a defect"):
        main()


def test_errors_that_a_user_can_correct() -> None:
    assert explain(ConfigError("wrong")) == ("wrong", 2)
    assert explain(FileNotFoundError(2, "No such file", "x")) == ("[Errno 2] No such file: 'x'", 1)
    assert explain(ValueError("a defect")) is None


def test_of_a_message_of_many_lines_the_first_are_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(DEBUG_VARIABLE, raising=False)
    failure = ConfigError("\n".join(f"edges.txt:{number}: expected two numbers" for number in range(1, 1051)))
    print_failure(failure, str(failure))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 51 and lines[-1] == "... and 1,000 more lines"
    assert lines[0] == "error: edges.txt:1: expected two numbers" and lines[49].startswith("edges.txt:50:")
