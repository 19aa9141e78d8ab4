"""Faults as data: what happens to whom, in which phase of a run; and how they are dealt to runs."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

PHASES = ("start", "forward", "exchange", "backward", "checkpoint", "transition", "replay", "scoring", "resume")
"""Phases of a run."""

VICTIMS: dict[str, tuple[str, ...]] = {
    "kill": ("student", "evaluator", "coordinator", "raylet", "gcs", "driver", "command"),
    "stop": ("student", "evaluator", "coordinator", "raylet", "gcs", "driver"),
    "ray_kill": ("student", "evaluator", "coordinator"),
    "slow": ("student", "evaluator", "coordinator"),
    "disk_full": ("coordinator",),
    "node": ("node",),
}
"""Kinds of faults, and what each may befall. The driver is the process that uses Ray, a child of the command."""

COMMON = ("forward", "exchange", "backward", "scoring")
"""Phases that come again soon; the others go first when they come."""
_SESSION = ("raylet", "gcs", "driver", "command")
"""What ends the Ray session."""
_ONCE = ("start", "resume")
"""Phases that come once in a run, as the run recovers before the next fault."""
_MOST_TRIES = 3
"""Runs in which the moment of a fault may fail to come."""


@dataclass(frozen=True)
class Fault:
    """One fault. Its moment within the phase is drawn when it is injected."""

    what: str
    whom: str
    phase: str

    @property
    def on_nodes(self) -> bool:
        """Whether the run has to be on a cluster of several nodes."""
        return self.what == "node"

    @property
    def replaces(self) -> bool:
        """Whether another process takes the place of one that the fault befalls: one that is slow is not lost."""
        return self.what != "slow"

    @property
    def ends_session(self) -> bool:
        """Whether a new Ray session follows, or the same one with another command."""
        return self.replaces and self.whom in _SESSION

    @property
    def stops_command(self) -> bool:
        """Whether the command stops by design, with a message: nothing can be written until there is space."""
        return self.what == "disk_full"

    @property
    def allowed_commands(self) -> int:
        """Commands that a person may have to type after it: a killed command cannot start itself anew."""
        return int(self.whom == "command" or self.stops_command)

    def __str__(self) -> str:
        return f"{self.what} {self.whom} in {self.phase}"


def every_fault() -> list[Fault]:
    """Return every kind of fault in every phase in which it is possible.

    An evaluator is idle in the middle of training, and the disk matters where something is written. An actor that is
    being made has no process yet in Ray's table, by which ``ray.kill`` finds it.
    """
    return [
        Fault(what, whom, phase)
        for what, victims in VICTIMS.items()
        for whom in victims
        for phase in PHASES
        if not (whom == "evaluator" and phase in ("forward", "exchange", "backward", "checkpoint", "transition"))
        and not (what == "disk_full" and phase not in ("checkpoint", "scoring", "transition", "replay"))
        and not (what == "node" and phase in ("start", "resume"))
        and not (what == "ray_kill" and whom != "coordinator" and phase in ("start", "resume"))
    ]


def selected(faults: Sequence[Fault], only: str | None) -> list[Fault]:
    """Return the faults that ``only`` names: ``what,whom,phase``, any of them empty or ``*`` for all."""
    if not only:
        return list(faults)
    wanted = [part.strip() for part in only.split(",")]
    wanted += ["*"] * (3 - len(wanted))
    return [
        fault
        for fault in faults
        if all(w in ("", "*", own) for w, own in zip(wanted, (fault.what, fault.whom, fault.phase), strict=True))
    ]


class Deck:
    """Faults in random order: all kinds come once before any comes again. Which meet in one run is random."""

    def __init__(self, faults: Sequence[Fault], seed: int) -> None:
        self._faults = list(faults)
        self._random = random.Random(seed)
        self._pile: deque[Fault] = deque()
        self._tries: dict[Fault, int] = {}

    def deal(self, most: int) -> list[Fault]:
        """Return the faults of the next run, at most ``most``: only those on nodes, or none of them."""
        if not self._pile:
            self._random.shuffle(self._faults)
            self._pile.extend(self._faults)
        on_nodes = self._pile[0].on_nodes
        dealt: list[Fault] = []
        for fault in list(self._pile):
            again = fault.phase in _ONCE and any(other.phase == fault.phase for other in dealt)
            if len(dealt) < most and fault.on_nodes == on_nodes and not again:
                dealt.append(fault)
                self._pile.remove(fault)
        return dealt

    def put_back(self, faults: Sequence[Fault]) -> list[Fault]:
        """Put faults whose moment did not come below the others. Returns those that have been tried often enough."""
        given_up = []
        for fault in faults:
            self._tries[fault] = self._tries.get(fault, 0) + 1
            if self._tries[fault] < _MOST_TRIES:
                self._pile.append(fault)
            else:
                self._tries[fault] = 0
                given_up.append(fault)
        return given_up
