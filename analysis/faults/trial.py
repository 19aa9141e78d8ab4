"""One run that gets several faults, one after another, and is then compared with its undisturbed twin."""

from __future__ import annotations

import random
import signal
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from analysis.faults.command import Command, GivenUpError
from analysis.faults.equality import differences
from analysis.faults.fault import COMMON, Fault
from analysis.faults.injection import ActorKiller, send, strike
from analysis.faults.moments import Moments
from analysis.faults.outcome import Outcome, Record
from analysis.faults.processes import Processes, kind_of, runs
from analysis.faults.recovery import Recovery, Results
from analysis.faults.steps import dealt_out, repeated_steps
from analysis.faults.subjects import Nodes, stages_of

RECOVERY_LIMIT = 150.0
"""Seconds without progress after which the command counts as hung."""
_END_LIMIT = 300.0
"""Seconds in which a run that gets no more faults ends, or the next moment comes."""
_GONE_SECONDS = 10.0
"""No process of a run may outlive its command by more."""
_FULL_DISK_CODE = 5
_SOON = 0.3
"""Seconds that a phase may be away before it counts as over."""
_PAUSE, _LONG_PAUSE = 0.002, 0.02
"""Seconds between two looks: at what actors do, and at what is on disk."""


class Trial:
    """One run."""

    def __init__(self, subject: str, files: tuple[Path, Path], seed: int, nodes: Nodes | None, mark: str) -> None:
        self._subject, self._nodes = subject, nodes
        self._random = random.Random(seed)
        self._processes = Processes(mark)
        self._command = Command(files, mark, supervised=nodes is None)
        self._moments = Moments(self._command, self._processes, nodes, self._random)
        self._results = Results(self._command.run)
        self._stages = stages_of(subject)
        self._records: list[Record] = []
        self._times: list[float] = []
        """When each of the faults was injected, in seconds since the epoch."""
        self._killer: ActorKiller | None = None

    def carry_out(self, faults: Sequence[Fault], expected: Path) -> Outcome:
        """Run, inject every fault whose phase comes, go on to the end with ``resume`` where needed, and compare."""
        began = time.monotonic()
        pending, found = list(faults), ["the run did not finish"]
        try:
            self._command.type()
            while pending and (chosen := self._next(self._with_means(pending))) is not None:
                fault, victim = chosen
                if fault in pending:
                    pending.remove(fault)
                self._befall(fault, victim, fault.ends_session and any(f.phase == "resume" for f in pending))
            if self._until(lambda: False, _END_LIMIT) or self._command.exit_code == 0:
                found = differences(self._command.run, expected)
        except GivenUpError as error:
            found.append(str(error))
        try:
            left = self._left()
        finally:
            self._end_all()
        again = dealt_out(repeated_steps(self._command.run), self._times)
        for record, steps in zip(self._records, again, strict=True):
            record.steps_again = steps
        return Outcome(self._subject, self._records, pending, found, left, time.monotonic() - began)

    # --- the moment

    def _with_means(self, pending: Sequence[Fault]) -> list[Fault]:
        """Return the faults that may come next: before one in ``resume`` can come, something has to end a session."""
        means = [fault for fault in pending if fault.ends_session and fault.phase not in ("start", "resume")]
        if any(fault.phase == "resume" for fault in pending) and not means:
            phase = self._random.choice(("forward", "exchange", "backward"))
            return [*pending, Fault("kill", "command", phase)]
        return list(pending)

    def _next(self, pending: Sequence[Fault]) -> tuple[Fault, int] | None:
        """Wait for a moment of whichever phase comes first. Returns the fault and its victim; None if none comes."""
        deadline = time.monotonic() + _END_LIMIT
        while self._until(lambda: bool(self._possible(pending)), deadline - time.monotonic()):
            possible = self._possible(pending)
            if not possible:
                continue
            fault = self._random.choice(possible)
            rarer = [other for other in pending if other.phase not in COMMON and fault.phase in COMMON]
            if self._until(lambda: bool(self._possible(rarer)), self._moments.delay(fault.phase)):  # noqa: B023
                continue
            victims = self._soon(fault)
            if victims:
                return fault, self._random.choice(victims)
        return None

    def _possible(self, pending: Sequence[Fault]) -> list[Fault]:
        """Return the faults whose phase it is and that have a victim; if there are any, those in rare phases only."""
        possible = [fault for fault in pending if self._victims(fault)]
        return [fault for fault in possible if fault.phase not in COMMON] or possible

    def _soon(self, fault: Fault) -> list[int]:
        """Return whom a fault may befall as soon as that is possible again: phases of a step come and go."""
        deadline = time.monotonic() + _SOON
        while True:
            self._moments.look()
            victims = self._victims(fault)
            if victims or time.monotonic() > deadline:
                return victims
            time.sleep(_PAUSE)

    def _victims(self, fault: Fault) -> list[int]:
        victims = self._moments.victims(fault)
        return victims if not victims or fault.what != "ray_kill" or self._has_killer() else []

    def _has_killer(self) -> bool:
        """Return whether a driver has joined the Ray session that there is now; start one if there is none."""
        raylets = self._processes.of_kind("raylet", self._command.driver())
        if self._killer is not None and self._killer.raylet not in raylets:
            self._killer.close()
            self._killer = None
        if self._killer is None and raylets:
            with suppress(OSError):
                self._killer = ActorKiller(raylets[-1])
        return self._killer is not None and self._killer.is_ready()

    # --- the fault, and what comes after it

    def _befall(self, fault: Fault, victim: int, another_comes_first: bool) -> None:
        """Inject a fault and wait for the recovery, unless another fault is meant to come during it."""
        record = Record(fault)
        recovery = Recovery(fault, self._processes, self._results, self._stages)
        self._records.append(record)
        self._times.append(time.time())
        began = time.monotonic()
        if not strike(fault, victim, self._wait, self._killer, self._nodes):
            record.notes.append("the victim had just ended")
        if fault.what == "ray_kill" and self._killer is not None:
            self._killer.close()
            self._killer = None
        if fault.stops_command:
            self._await_stop(record)
            began = time.monotonic()  # now there is space, and a person types
        if another_comes_first:
            record.progress = "another fault came first"
            return
        self._await_recovery(record, recovery, began)
        if not fault.replaces and not runs(victim) and self._command.exit_code is None:
            record.notes.append("a slow process was replaced")

    def _await_recovery(self, record: Record, recovery: Recovery, began: float) -> None:
        def has_recovered() -> bool:
            record.progress = recovery.progress()
            return bool(record.progress)

        recovered = self._until(has_recovered, RECOVERY_LIMIT, _LONG_PAUSE)
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
            self._wait(_LONG_PAUSE)
        said = self._command.last_words()
        if self._command.exit_code != _FULL_DISK_CODE or str(self._command.run) not in said or "Traceback" in said:
            record.notes.append(f"the command ended with {self._command.exit_code}, saying: {said}")

    # --- the command

    def _until(self, condition: Callable[[], bool], limit: float, pause: float = _PAUSE) -> bool:
        """Look until ``condition``; False after ``limit`` seconds, or if the run is finished before.

        Types ``resume`` if the command has failed.
        """
        deadline = time.monotonic() + limit
        while time.monotonic() < deadline:
            self._moments.look()
            code = self._command.exit_code
            if code == 0:
                return False
            if code is not None:
                if self._records:
                    self._records[-1].exit_codes.append(code)
                    self._records[-1].commands += 1
                self._command.type()
            if condition():
                return True
            time.sleep(pause)
        return False

    def _wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self._moments.look()
            time.sleep(_PAUSE)

    # --- the end

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
        return {pid: title for pid, title in alive.items() if self._nodes is None or kind_of(title) in actors}

    def _end_all(self) -> None:
        if self._killer is not None:
            self._killer.close()
        self._command.kill()
        for pid in self._of_run():
            send(pid, signal.SIGKILL)


def new_mark() -> str:
    """Return a mark for the processes of one run."""
    return uuid.uuid4().hex
