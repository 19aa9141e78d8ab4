"""Faults as data: what happens to whom, in which phase of a run; and plans of runs that get several of them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

PHASES = ("start", "forward", "exchange", "backward", "checkpoint", "transition", "replay", "scoring", "resume")
"""Phases in the order in which a run gets to them."""

VICTIMS: dict[str, tuple[str, ...]] = {
    "kill": ("student", "evaluator", "coordinator", "raylet", "gcs", "command"),
    "stop": ("student", "evaluator", "coordinator", "raylet", "gcs"),
    "ray_kill": ("student", "evaluator", "coordinator"),
    "slow": ("student", "evaluator", "coordinator"),
    "disk_full": ("coordinator",),
    "node": ("node",),
}
"""Kinds of faults, and what each may befall."""


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
    def allowed_commands(self) -> int:
        """Commands that a person may have to type after it: a killed command cannot start itself anew."""
        return int(self.whom == "command")

    def __str__(self) -> str:
        return f"{self.what} {self.whom} in {self.phase}"


def every_fault() -> list[Fault]:
    """Return every kind of fault in every phase.

    An evaluator is idle in the middle of training, and the disk matters where something is written.
    """
    return [
        Fault(what, whom, phase)
        for what, victims in VICTIMS.items()
        for whom in victims
        for phase in PHASES
        if not (whom == "evaluator" and phase in ("forward", "exchange", "backward", "checkpoint", "transition"))
        and not (what == "disk_full" and phase not in ("checkpoint", "scoring", "transition"))
        and not (what == "node" and phase in ("start", "resume"))
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


def plan(faults: Sequence[Fault], rounds: int, seed: int, per_run: int) -> list[list[Fault]]:
    """Return ``rounds`` faults, dealt to runs of at most ``per_run`` in the order in which a run gets to them.

    All kinds come once before any comes again; which meet in one run is random. Node removals have runs of their own.
    """
    generator = random.Random(seed)
    drawn: list[Fault] = []
    while faults and len(drawn) < rounds:
        deck = list(faults)
        generator.shuffle(deck)
        drawn += deck[: rounds - len(drawn)]
    runs: list[list[Fault]] = []
    for on_nodes in (False, True):
        own = [fault for fault in drawn if fault.on_nodes == on_nodes]
        size = 2 if on_nodes else per_run
        runs += [sorted(own[i : i + size], key=lambda f: PHASES.index(f.phase)) for i in range(0, len(own), size)]
    return runs
