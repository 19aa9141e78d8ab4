"""Who learns from whom."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Topology:
    """A directed graph of who learns from whom; ``(teacher, student)`` are its edges."""

    size: int
    edges: frozenset[tuple[int, int]]
    frozen: frozenset[int] = frozenset()
    """Peers that predict and never learn: teachers that were trained before."""

    @property
    def students(self) -> tuple[int, ...]:
        """The peers that learn, in ascending order."""
        return tuple(peer for peer in range(self.size) if peer not in self.frozen)

    def teachers_of(self, peer: int) -> tuple[int, ...]:
        """The peers whose predictions ``peer`` learns from, in ascending order."""
        return tuple(sorted(teacher for teacher, student in self.edges if student == peer))

    def teaches(self, peer: int) -> bool:
        """Whether anyone learns from ``peer``."""
        return any(teacher == peer for teacher, _ in self.edges)


def isolated(size: int) -> Topology:
    """Peers that do not see each other."""
    return Topology(size, frozenset())


def complete(size: int) -> Topology:
    """Every peer learns from every other."""
    return Topology(size, frozenset((i, j) for i in range(size) for j in range(size) if i != j))


def taught(size: int) -> Topology:
    """``size`` students that learn from one teacher, the last peer, and not from each other."""
    return Topology(size + 1, frozenset((size, i) for i in range(size)), frozenset({size}))


TOPOLOGIES = MappingProxyType({"isolated": isolated, "complete": complete, "taught": taught})
