"""A spawner of stand-ins for students, which are objects of this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ray_l4.cluster.evaluators import Evaluators
from ray_l4.cluster.handles import StudentHandle
from ray_l4.cluster.rpc import LocalRpc, Rpc
from ray_l4.workers.rendezvous import RendezvousStore


@dataclass
class StandInSpawner:
    """Starts what ``make`` returns: the ranks of the student of a slot."""

    make: Callable[[int], Sequence[Any]]
    peers: Sequence[int]
    rpc: Rpc = field(default_factory=LocalRpc)
    rendezvous: RendezvousStore | None = None
    started: list[int] = field(default_factory=list)
    """Slots, in the order in which their students were started."""

    def student(self, slot: int) -> StudentHandle:
        self.started.append(slot)
        return StudentHandle(slot, self.rpc, self.make(slot))

    def evaluators(self) -> Evaluators:
        return Evaluators([])
