"""One run that gets several faults, one after another, and is then compared with its undisturbed twin."""

from __future__ import annotations

import random
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from analysis.faults.equality import differences, steps_on_record
from analysis.faults.fault import Fault
from analysis.faults.injection import ActorKiller, fill_disk, send, slow_down
from analysis.faults.processes import MARK, Processes, kind_of
from analysis.faults.subjects import Nodes, command, environment

RECOVERY_LIMIT = 120.0
"""Seconds without progress after which the command counts as hung."""
_PHASE_LIMIT = 120.0
_END_LIMIT = 240.0
_STEPS_AGAIN = 5
"""Training is going on again when two students have begun so many more steps each: more than were under way."""
_GONE_SECONDS = 10.0
"""No process of a run may outlive its command by more."""
_MOST_COMMANDS = 6
_PAUSE = 0.002


@dataclass
class Record:
    """What one fault did."""

    fault: Fault
    recovery_seconds: float | None = None
    """From the fault until the run made progress again; None if it never did."""
    commands: int = 0
    """Commands that had to be typed."""
    exit_codes: list[int] = field(default_factory=list)
    """With which the command ended because of it."""
    notes: list[str] = field(default_factory=list)


@dataclass
class Outcome:
    """What a run with all its faults came to."""

    subject: str
    records: list[Record]
    not_reached: list[Fault]
    differences: list[str]
    left: list[str]
    """Processes that outlived the command by ``_GONE_SECONDS``."""
    steps_again: int
    """Steps of one student that were seen to begin, beyond those on record. Processes are watched from outside, so a
    step that begins and ends between two looks is not counted."""
    seconds: float


class Trial:
    """One run."""

    def __init__(self, subject: str, files: tuple[Path, Path], seed: int, nodes: Nodes | None, mark: str) -> None:
        self._subject, self._files, self._nodes = subject, files, nodes
        self._run = files[0].parent / "run"
        self._random = random.Random(seed)
        self._mark = mark
        self._processes = Processes(mark)
        self._process: subprocess.Popen[bytes] | None = None
        self._commands = 0
        self._records: list[Record] = []
        self._began = 0.0
        self._next_look = 0.0
        self._killer: ActorKiller | None = None

    def carry_out(self, faults: Sequence[Fault], expected: Path) -> Outcome:
        """Run, inject every fault whose phase comes, go on to the end with ``resume`` where needed, and compare."""
        began = time.monotonic()
        not_reached, found = list(faults), ["the run did not finish"]
        try:
            self._type()
            for fault in faults:
                victim = self._reach(fault)
                if victim is not None:
                    not_reached.remove(fault)
                    self._strike(fault, victim)
            if self._finish():
                found = differences(self._run, expected)
        except _GivenUpError as error:
            self._records[-1].notes.append(f"given up: {error}")
        try:
            left = self._left()
        finally:
            self._end_all()
        again = max(0, sum(self._processes.backwards.values()) - steps_on_record(expected))
        return Outcome(self._subject, self._records, not_reached, found, left, again, time.monotonic() - began)

    # --- the command

    def _type(self) -> None:
        experiment, profile = self._files
        arguments: tuple[str | Path, ...] = ("run", experiment, "--cluster", profile, "--run-dir", self._run)
        if (self._run / "config.yaml").is_file():
            arguments = ("resume", self._run)
        with (self._run.parent / "output.txt").open("ab") as output:
            self._process = subprocess.Popen(
                command(*arguments),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env=environment({MARK: self._mark}),
            )
        self._commands += 1
        self._began = time.monotonic()

    def _poll(self) -> bool:
        """Look at everything; type ``resume`` if the command has failed. Returns whether the run is finished."""
        self._processes.poll()
        assert self._process is not None
        code = self._process.poll()
        if code == 0:
            return True
        if code is not None:
            if self._records:
                self._records[-1].exit_codes.append(code)
            self._type_again(f"the command ended with {code}")
        return False

    def _type_again(self, why: str) -> None:
        if self._commands >= _MOST_COMMANDS:
            raise _GivenUpError(why)
        if self._records:
            self._records[-1].commands += 1
        self._type()

    def _until(self, condition: Callable[[], bool], limit: float) -> bool:
        """Poll until ``condition``; False after ``limit`` seconds, or if the run is finished before."""
        deadline = time.monotonic() + limit
        while time.monotonic() < deadline:
            if self._poll():
                return False
            if condition():
                return True
            time.sleep(_PAUSE)
        return False

    def _pause(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self._processes.poll()
            time.sleep(_PAUSE)

    # --- the moment

    def _reach(self, fault: Fault) -> int | None:
        """Wait for a random moment of the fault's phase; returns the victim, or None if the moment does not come."""
        if fault.phase == "resume" and self._commands == 1 and not self._interrupt():
            return None
        if fault.what == "ray_kill" and not self._join(fault):
            return None
        steps = fault.phase in ("forward", "exchange", "backward")
        if self._phase(fault.phase):  # not only its first moment
            self._pause(self._random.uniform(0.0, 0.5))
        for _ in range(self._random.randrange(1, 25 if steps else 3)):
            if not self._until(lambda: self._phase(fault.phase), _PHASE_LIMIT):
                return None
            self._until(lambda: not self._phase(fault.phase) or not steps, 1.0)
        longest = 0.004 if steps else 2.0 if fault.phase in ("start", "resume") else 0.05
        delay = self._random.uniform(0.0, longest)
        victims: list[int] = []

        def now() -> bool:
            nonlocal victims
            victims = self._victims(fault)
            return bool(victims) and self._phase(fault.phase)

        if not self._until(now, _PHASE_LIMIT):
            return None
        self._pause(delay)
        return self._random.choice(victims)

    def _interrupt(self) -> bool:
        """Kill the command in training, so that there is something to resume: a fault of its own."""
        fault = Fault("kill", "command", "forward")
        victim = self._reach(fault)
        if victim is not None:
            self._strike(fault, victim)
        return victim is not None

    def _join(self, fault: Fault) -> bool:
        if not self._until(lambda: bool(self._processes.of_kind("raylet") and self._victims(fault)), _PHASE_LIMIT):
            return False
        self._killer = ActorKiller(self._processes.of_kind("raylet")[-1])
        return self._killer.ready

    def _phase(self, phase: str) -> bool:
        doing, trained = self._processes.doing, self._processes.last_forward
        if phase in ("start", "resume"):
            return trained < self._began and (phase == "start" or self._commands > 1)
        if phase == "exchange":  # one waits for the predictions of the other
            students = self._processes.of_kind("student")
            return 0 < len(doing("Student.backward")) < len(students)
        if phase == "transition" and trained:
            with suppress(OSError):
                return (self._run / "state.json").stat().st_mtime > time.time() - (time.monotonic() - trained)
        return bool(doing(*_CALLS.get(phase, ())))

    def _victims(self, fault: Fault) -> list[int]:
        if fault.whom == "command":
            assert self._process is not None
            return [self._process.pid]
        if fault.whom == "node":
            return self._nodes.with_raylet(self._processes.of_kind("raylet")) if self._nodes else []
        assert self._process is not None  # those of an earlier command may not have ended yet
        return self._processes.of_kind(fault.whom, since=self._process.pid)

    # --- the fault, and what comes after it

    def _strike(self, fault: Fault, victim: int) -> None:
        record = Record(fault)
        self._records.append(record)
        processes = self._processes
        before = _Before(dict(processes.backwards), frozenset(processes.titles), self._files_there())
        began = time.monotonic()
        if not self._inject(fault, victim):
            record.notes.append("the victim had just ended")
        progressed = self._until(lambda: self._progress(fault, victim, before), RECOVERY_LIMIT)
        assert self._process is not None
        if self._process.poll() == 0 or progressed:
            record.recovery_seconds = time.monotonic() - began
            return
        record.notes.append(f"no progress within {RECOVERY_LIMIT:g} s")
        send(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _inject(self, fault: Fault, victim: int) -> bool:
        if fault.what == "slow":
            return slow_down(victim, self._pause)
        if fault.what == "disk_full":
            return fill_disk(victim, self._pause)
        if fault.what == "ray_kill":
            assert self._killer is not None
            try:
                return self._killer.kill(victim)
            finally:
                self._killer.close()
                self._killer = None
        if fault.what == "node":
            assert self._nodes is not None
            self._nodes.remove(victim)
            return True
        return send(victim, signal.SIGSTOP if fault.what == "stop" else signal.SIGKILL)

    def _progress(self, fault: Fault, victim: int, before: _Before) -> bool:
        """Whether the run has done something that it could not have had under way before the fault."""
        now, steps, there, files = self._processes.backwards, before.steps, before.there, before.files
        ahead = [pid for pid in now if pid != victim and now[pid] >= steps.get(pid, 0) + _STEPS_AGAIN]
        if fault.what == "slow":
            ahead = [pid for pid in now if now[pid] >= steps.get(pid, 0) + _STEPS_AGAIN]
        if fault.whom == "command":  # what it left behind does not count
            ahead = [pid for pid in ahead if pid not in there]
            if len(ahead) >= _LEARNING.get(self._subject, 2):
                return True
            return any(pid not in there for pid in self._processes.doing(*_WORK))
        if fault.whom == "evaluator":
            if any(pid not in there for pid in self._processes.doing(*_WORK)):
                return True
        elif len(ahead) >= _LEARNING.get(self._subject, 2):
            return True
        if time.monotonic() < self._next_look:
            return False
        self._next_look = time.monotonic() + 0.1
        kinds: tuple[str, ...] = (
            ("scores", "replay") if fault.whom == "evaluator" else ("checkpoints", "replay", "scores")
        )
        if fault.whom in ("student", "node"):  # evaluators go on
            kinds = ("checkpoints",)
        return any(file.startswith(kinds) for file in self._files_there() - files)

    def _files_there(self) -> frozenset[str]:
        found = (
            path.relative_to(self._run)
            for name in ("scores", "replay", "checkpoints")
            for path in (self._run / name).glob("**/*.*")
        )
        return frozenset(str(path) for path in found if ".part" not in str(path) and path.suffix in _WHOLE)

    def _finish(self) -> bool:
        assert self._process is not None
        finished = self._until(lambda: False, _END_LIMIT) or self._process.poll() == 0
        if not finished and self._records:
            self._records[-1].notes.append(f"the run did not end within {_END_LIMIT:g} s")
        return finished

    def _left(self) -> list[str]:
        deadline = time.monotonic() + _GONE_SECONDS
        while (left := self._of_run()) and time.monotonic() < deadline:
            time.sleep(0.2)
        return sorted(left.values())

    def _of_run(self) -> dict[int, str]:
        """Return the live processes of the run; on several nodes, only its actors: the nodes outlive it."""
        alive = self._processes.alive()
        actors = ("student", "evaluator", "coordinator")
        return {pid: title for pid, title in alive.items() if self._nodes is None or kind_of(title) in actors}

    def _end_all(self) -> None:
        if self._killer is not None:
            self._killer.close()
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        for pid in self._of_run():
            send(pid, signal.SIGKILL)


@dataclass(frozen=True)
class _Before:
    """What there was just before a fault."""

    steps: dict[int, int]
    """Steps begun, by process."""
    there: frozenset[int]
    """Processes."""
    files: frozenset[str]


class _GivenUpError(Exception):
    """The run has needed too many commands."""


_CALLS = {
    "forward": ("Student.forward",),
    "backward": ("Student.backward",),
    "checkpoint": ("Student.weights",),
    "replay": ("Evaluator.replay",),
    "scoring": ("Evaluator.answer", "Evaluator.score"),
}
"""What actors do in a phase."""
_WORK = ("Evaluator.replay", "Evaluator.answer")
_LEARNING = {"lamol": 1}
"""Students of a subject that learn, if not two."""
_WHOLE = (".safetensors", ".json", ".parquet")


def new_mark() -> str:
    """Return a mark for the processes of one run."""
    return uuid.uuid4().hex
