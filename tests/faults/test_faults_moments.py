"""The phase of a run and its possible victims, read from the titles of processes; and what is typed when it ends."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from analysis.faults.command import Command, GivenUpError
from analysis.faults.fault import PHASES, Fault
from analysis.faults.moments import Moments
from analysis.faults.processes import Processes, children_of, has_ended, runs, start_of
from analysis.faults.watching import Watching


class Typed(Command):
    """A command that is an idle process, or ends with the next of the given codes."""

    def __init__(self, folder: Path, codes: list[int] | None = None) -> None:
        super().__init__((folder / "experiment.yaml", folder / "cluster.yaml"), "a test", supervised=False)
        self.codes = codes

    def type(self) -> None:
        program = "import time; time.sleep(60)" if self.codes is None else f"raise SystemExit({self.codes.pop(0)})"
        self._process = subprocess.Popen([sys.executable, "-c", program])
        self.typed += 1
        self.began = time.monotonic()


@pytest.fixture
def workers() -> Iterator[list[int]]:
    """Two processes that may be taken for any."""
    begun = [subprocess.Popen(["sleep", "60"]) for _ in range(2)]
    yield [process.pid for process in begun]
    for process in begun:
        process.kill()
        process.wait()


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Command]:
    typed = Typed(tmp_path)
    typed.type()
    yield typed
    typed.kill()


def phases(command: Command, workers: list[int], first: str, second: str) -> set[str]:
    """Return the phases in which the run is if two workers have these titles, and a third one has learned before."""
    processes = Processes("nobody's")
    moments = Moments(command, processes, None, random.Random(0))
    moments.look()
    processes.titles = dict(zip(workers, (f"ray::{first}", f"ray::{second}"), strict=True))
    processes.note_work("student", workers[0], time.monotonic())
    return {phase for phase in PHASES if moments.victims(Fault("kill", "command", phase))}


@pytest.mark.parametrize(
    ("titles", "expected"),
    [
        (("Student.forward", "Student"), {"forward"}),
        (("Student.backward", "Student"), {"backward", "exchange"}),
        (("Student.backward", "Student.backward"), {"backward"}),
        (("Student.advance", "Student"), {"forward", "backward", "exchange"}),
        (("Student.state", "Student"), {"checkpoint"}),
        (("Evaluator.replay", "Student"), {"replay"}),
        (("Evaluator.answer", "Student.forward"), {"scoring", "forward"}),
        (("Student", "Evaluator"), set()),
    ],
)
def test_the_phase_follows_from_what_actors_do(
    command: Command, workers: list[int], titles: tuple[str, str], expected: set[str]
) -> None:
    assert phases(command, workers, *titles) == expected


def test_a_run_starts_until_a_student_learns_and_is_between_stages_once_one_is_committed(
    command: Command, workers: list[int]
) -> None:
    processes = Processes("nobody's")
    moments = Moments(command, processes, None, random.Random(0))
    moments.look()
    processes.titles = dict.fromkeys(workers, "ray::Student")
    assert moments.victims(Fault("kill", "student", "start")) == sorted(workers)
    assert moments.victims(Fault("kill", "evaluator", "start")) == []
    assert moments.victims(Fault("kill", "command", "resume")) == [], "it is the first session"
    processes.note_work("student", workers[0], time.monotonic() - 0.1)
    assert moments.victims(Fault("kill", "student", "start")) == []
    command.run.mkdir()
    (command.run / "state.json").touch()
    assert moments.victims(Fault("kill", "command", "transition")) == [command.pid]
    processes.note_work("student", workers[0], time.monotonic() + 1.0)
    assert moments.victims(Fault("kill", "command", "transition")) == []


def test_an_evaluator_starts_while_students_learn_until_it_works(command: Command, workers: list[int]) -> None:
    processes = Processes("nobody's")
    moments = Moments(command, processes, None, random.Random(0))
    moments.look()
    student, evaluator = workers
    processes.titles = {student: "ray::Student.forward", evaluator: "ray::Evaluator"}
    processes.note_work("student", student, time.monotonic())
    assert moments.victims(Fault("kill", "evaluator", "start")) == [evaluator]
    assert moments.victims(Fault("kill", "student", "start")) == []
    processes.note_work("evaluator", evaluator, time.monotonic())
    assert moments.victims(Fault("kill", "evaluator", "start")) == []


def test_what_is_known_of_a_process(workers: list[int]) -> None:
    assert set(workers) <= set(children_of(os.getpid()))
    assert start_of(workers[0]) >= start_of(os.getpid()) > 0
    assert runs(workers[0]) and not runs(2**22 + 1) and children_of(2**22 + 1) == []
    os.kill(workers[0], signal.SIGSTOP)
    while runs(workers[0]):
        time.sleep(0.01)
    assert not has_ended(workers[0]), "it may go on"
    assert has_ended(2**22 + 1)


def test_resume_is_typed_whenever_a_command_has_ended_early_and_not_for_ever(tmp_path: Path) -> None:
    typed, ended = Typed(tmp_path, [7, 5, 0]), list[int]()
    typed.type()
    watching = Watching(typed, Moments(typed, Processes("nobody's"), None, random.Random(0)), ended.append)
    assert watching.end(60.0)
    assert ended == [7, 5] and typed.typed == 3
    endless = Command((tmp_path / "no.yaml", tmp_path / "no.yaml"), "a test", supervised=False)
    endless.typed = 8
    with pytest.raises(GivenUpError, match="8 commands"):
        endless.type()
