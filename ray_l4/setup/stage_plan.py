"""Which worker learns which stage, and who learns at the same time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ray_l4.setup.setup import Setup


@dataclass(frozen=True)
class Seat:
    """A worker that learns a stage as this student."""

    worker: int
    student: int
    stage: int


def peers_of(setup: Setup, places: int) -> list[int]:
    """What number each worker goes by: a peer of the graph, or 0 for models that are trained independently."""
    if setup.method.stages == "separate":
        return [0] * min(places, len(setup.stages))
    return list(range(setup.topology.size))


def groups(setup: Setup, done: int, workers: int) -> Iterator[list[Seat]]:
    """The stages that are not done, in order; as many independent ones together as there are workers."""
    stages = range(done, len(setup.stages))
    if setup.method.stages == "separate":
        for first in stages[::workers]:
            together = range(first, min(first + workers, stages.stop))
            yield [Seat(worker, 0, stage) for worker, stage in enumerate(together)]
    else:
        for stage in stages:
            yield [Seat(student, student, stage) for student in setup.topology.students]


def levelled(at: Mapping[int, int], ends: Mapping[int, int]) -> list[dict[int, range]]:
    """How workers that were interrupted at different steps go on: those behind catch up first, then all together.

    ``at``: worker -> its next step; ``ends``: worker -> the step before which it stops.
    """
    going = []
    now = {worker: at[worker] for worker in ends}
    while len(set(now.values())) > 1:
        low, *higher = sorted(set(now.values()))
        behind = [worker for worker, step in now.items() if step == low]
        going.append({worker: range(low, min(higher[0], ends[worker])) for worker in behind})
        now |= dict.fromkeys(behind, higher[0])
    return [*going, {worker: range(step, ends[worker]) for worker, step in now.items()}]


def passes(
    seats: Sequence[Seat],
    steps: Mapping[int, range],
    schedule: Literal["simultaneous", "alternate_epochs"],
) -> list[dict[int, range]]:
    """How an epoch goes: all workers side by side over their steps, or one after the other (Algorithm 1 of L4).

    ``steps``: worker -> its steps of the epoch.
    """
    if schedule == "simultaneous":
        return [dict(steps)]
    return [{seat.worker: steps[seat.worker]} for seat in seats]
