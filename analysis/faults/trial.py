"""One run that gets several faults, one after another, and is then compared with its undisturbed twin."""

from __future__ import annotations

import random
import signal
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from analysis.faults.choice import Choice
from analysis.faults.command import Command, GivenUpError
from analysis.faults.equality import differences
from analysis.faults.fault import Fault
from analysis.faults.injection import send
from analysis.faults.injector import Injector
from analysis.faults.moments import Moments
from analysis.faults.outcome import Outcome, Record
from analysis.faults.processes import Processes, has_ended, kind_of, runs
from analysis.faults.recovery import Recovery, Results
from analysis.faults.steps import dealt_out, repeated_steps
from analysis.faults.subjects import Nodes, stages_of
from analysis.faults.watching import LONG_PAUSE, Watching

RECOVERY_LIMIT = 150.0
"""Seconds without progress after which the command counts as hung."""
_END_LIMIT = 300.0
"""Seconds in which a run that gets no more faults ends, or the next moment comes."""
_GONE_SECONDS = 10.0
"""No process of a run may outlive its command by more."""
_REPLACED_SECONDS = 20.0
"""Within which another process is in the place of one that was replaced."""
_FULL_DISK_CODE = 5


class Trial:
    """One run."""

    def __init__(self, subject: str, files: tuple[Path, Path], seed: int, nodes: Nodes | None, mark: str) -> None:
        self._subject, self._has_nodes, self._stages = (subject, nodes is not None, stages_of(subject))
        generator = random.Random(seed)
        self._processes = Processes(mark)
        self._command = Command(files, mark, supervised=nodes is None)
        self._moments = Moments(self._command, self._processes, nodes, generator)
        self._injector = Injector(self._command, self._processes, nodes)
        self._watching = Watching(self._command, self._moments, self._note_exit)
        self._choice = Choice(self._watching, self._victims, self._moments.delay, generator)
        self._results = Results(self._command.run)
        self._records: list[Record] = []
        self._times: list[float] = []
        """When each of the faults was injected, in seconds since the epoch."""

    def carry_out(self, faults: Sequence[Fault], expected: Path) -> Outcome:
        """Run, inject every fault whose phase comes, go on to the end with ``resume`` where needed, and compare."""
        began = time.monotonic()
        pending, found = list(faults), ["the run did not finish"]
        try:
            try:
                found = self._disturb(pending, expected)
            except GivenUpError as error:
                found.append(str(error))
            self._injector.close()  # it is no process of the run
            left = self._left()
        finally:
            self._end_all()
        again = dealt_out(repeated_steps(self._command.run), self._times)
        for record, steps in zip(self._records, again, strict=True):
            record.steps_again = steps
        return Outcome(self._subject, self._records, pending, found, left, time.monotonic() - began)

    def _disturb(self, pending: list[Fault], expected: Path) -> list[str]:
        """Go through a run with its faults; those that were injected leave ``pending``. Returns what differs then."""
        self._command.type()
        while pending and (chosen := self._choice.next(pending, _END_LIMIT)) is not None:
            fault, victim = chosen
            if fault in pending:
                pending.remove(fault)
            self._befall(fault, victim, fault.ends_session and any(f.phase == "resume" for f in pending))
        if self._watching.end(_END_LIMIT):
            return differences(self._command.run, expected)
        return ["the run did not finish"]

    def _victims(self, fault: Fault) -> list[int]:
        return self._moments.victims(fault) if self._injector.can(fault) else []  # prepared before its moment comes

    def _note_exit(self, code: int) -> None:
        """Note that a command ended early, and that another one is typed, because of the newest fault."""
        if self._records:
            self._records[-1].exit_codes.append(code)
            self._records[-1].commands += 1

    def _befall(self, fault: Fault, victim: int, another_comes_first: bool) -> None:
        """Inject a fault and wait for the recovery, unless another fault is meant to come during it."""
        record = Record(fault)
        recovery = Recovery(fault, self._processes, self._results, self._stages)
        self._records.append(record)
        self._times.append(time.time())
        began = time.monotonic()
        if not self._injector.strike(fault, victim, self._watching.wait):
            record.notes.append("it could not be injected: the victim had just ended")
            return
        if fault.stops_command:
            self._await_stop(record)
            began = time.monotonic()  # now there is space, and a person types
        if another_comes_first:
            record.progress = "another fault came first"
            # Until then, its session goes on. One that is stopped is ended later.
            self._watching.until(lambda: has_ended(victim), RECOVERY_LIMIT, LONG_PAUSE)
            return
        self._await_recovery(record, recovery, began)
        if fault.replaces or runs(victim):
            return
        # It is gone, which is an error unless it had nothing more to do.
        if self._watching.until(recovery.has_replacement, _REPLACED_SECONDS, LONG_PAUSE):
            record.notes.append("a slow process was replaced")

    def _await_recovery(self, record: Record, recovery: Recovery, began: float) -> None:
        def has_recovered() -> bool:
            record.progress = recovery.progress()
            return bool(record.progress)

        recovered = self._watching.until(has_recovered, RECOVERY_LIMIT, LONG_PAUSE)
        if recovered or self._command.exit_code == 0:
            record.progress = record.progress or "end of the run"
            record.recovery_seconds = time.monotonic() - began
            return
        record.notes.append(f"no progress within {RECOVERY_LIMIT:g} s")
        self._command.kill()

    def _await_stop(self, record: Record) -> None:
        """Wait until a command that cannot write has stopped, as it should: with code 5, naming the file."""
        deadline = time.monotonic() + _END_LIMIT
        while self._command.exit_code is None and time.monotonic() < deadline:
            self._watching.wait(LONG_PAUSE)
        said = self._command.last_words()
        if self._command.exit_code != _FULL_DISK_CODE or str(self._command.run) not in said:
            record.notes.append(f"the command ended with {self._command.exit_code}, saying: {said}")

    def _left(self) -> list[str]:
        """Return what outlives the command by too long."""
        deadline = time.monotonic() + _GONE_SECONDS
        while (left := self._of_run()) and time.monotonic() < deadline:
            time.sleep(0.2)
        return sorted(left.values())

    def _of_run(self) -> dict[int, str]:
        """Return the live processes of the run; on several nodes, only its actors: the nodes outlive it."""
        alive = self._processes.alive()
        actors = ("student", "evaluator", "coordinator")
        return {pid: title for pid, title in alive.items() if not self._has_nodes or kind_of(title) in actors}

    def _end_all(self) -> None:
        self._injector.close()
        self._command.kill()
        for pid in self._of_run():
            send(pid, signal.SIGKILL)


def new_mark() -> str:
    """Return a mark for the processes of one run."""
    return uuid.uuid4().hex
