"""Topologies: directed graphs of who learns from whom."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType

from ray_l4.errors import ConfigError

Pair = tuple[int, int]
"""An edge: (teacher, student)."""


@dataclass(frozen=True)
class Topology:
    """A directed graph of peers. An edge ``(teacher, student)`` means that the student learns from the teacher."""

    size: int
    """Number of peers, including lost ones."""
    edges: frozenset[Pair]
    frozen: frozenset[int] = frozenset()
    """Peers that predict but never learn: teachers trained earlier."""
    lost: frozenset[int] = frozenset()
    """Peers that were lost during the run: they keep their numbers but neither learn nor teach."""

    @property
    def present(self) -> tuple[int, ...]:
        """The peers that are not lost, in ascending order."""
        return tuple(peer for peer in range(self.size) if peer not in self.lost)

    @property
    def students(self) -> tuple[int, ...]:
        """The peers that learn, in ascending order."""
        return tuple(peer for peer in self.present if peer not in self.frozen)

    def teachers_of(self, peer: int) -> tuple[int, ...]:
        """Return the peers that ``peer`` learns from, in ascending order."""
        return self._teachers.get(peer, ())

    def teaches(self, peer: int) -> bool:
        """Return whether any peer learns from ``peer``."""
        return peer in self._teaching

    @cached_property
    def _teachers(self) -> Mapping[int, tuple[int, ...]]:
        found: dict[int, list[int]] = {}
        for teacher, student in sorted(self.edges):
            found.setdefault(student, []).append(teacher)
        return {student: tuple(teachers) for student, teachers in found.items()}

    @cached_property
    def _teaching(self) -> frozenset[int]:
        return frozenset(teacher for teacher, _ in self.edges)

    def without(self, peers: Collection[int]) -> Topology:
        """Return the topology after the loss of ``peers``: the others keep their numbers and their present teachers."""
        gone = frozenset(peers)
        edges = frozenset(edge for edge in self.edges if gone.isdisjoint(edge))
        return Topology(self.size, edges, self.frozen - gone, self.lost | gone)

    def in_words(self) -> str:
        """Describe the topology in one line: ``0 learns from 3; 1 from 0; 2 from nobody``."""
        lines: list[str] = []
        for peer in self.students:
            names = [f"{t} (frozen)" if t in self.frozen else str(t) for t in self.teachers_of(peer)]
            lines.append(f"{peer}{'' if lines else ' learns'} from {', '.join(names) or 'nobody'}")
        return "; ".join(lines)


def isolated(size: int) -> Topology:
    """Return the topology in which no peer learns from another."""
    return Topology(size, frozenset())


def complete(size: int) -> Topology:
    """Return the topology in which every peer learns from all others."""
    return Topology(size, frozenset((i, j) for i in range(size) for j in range(size) if i != j))


def ring(size: int) -> Topology:
    """Return the topology in which every peer learns from the previous one, and the first from the last."""
    return Topology(size, frozenset((i, (i + 1) % size) for i in range(size) if size > 1))


def star(size: int) -> Topology:
    """Return the topology in which all peers learn from peer 0, and peer 0 from all."""
    return Topology(size, frozenset(edge for i in range(1, size) for edge in ((0, i), (i, 0))))


def taught(size: int, teachers: int = 1) -> Topology:
    """Return the topology of ``size`` students that learn only from frozen ``teachers``, the last peers."""
    frozen = range(size, size + teachers)
    return Topology(size + teachers, frozenset((j, i) for j in frozen for i in range(size)), frozenset(frozen))


def from_edges(
    size: int, edges: Sequence[Sequence[int]], where: Callable[[int], str] = "peers.topology.{}".format
) -> Topology:
    """Return a topology of ``size`` peers with edges from pairs (teacher, student).

    Args:
        where: returns the location of the pair with the given index, for messages.

    Raises:
        ConfigError: a pair contains an unknown peer or the same peer twice, or occurs twice; one line per pair.
    """
    first: dict[Pair, int] = {}
    problems = []
    for index, (teacher, student) in enumerate(edges):
        edge = (teacher, student)
        unknown = next((peer for peer in edge if not 0 <= peer < size), None)
        if unknown is not None:
            problem = (
                f"there is no peer {unknown}: the {size} peers are numbered from 0. Use 0 to {size - 1}, or set "
                f"peers.count to {max(edge) + 1} or more"
            )
        elif teacher == student:
            problem = "a peer cannot learn from itself. Name another teacher, or remove the pair"
        elif edge in first:
            problem = f"duplicate of {where(first[edge])}. Remove one of them; all teachers have the same weight"
        else:
            first[edge] = index
            continue
        problems.append(f"{where(index)}: [{teacher}, {student}]: {problem}")
    if problems:
        raise ConfigError("\n".join(problems))
    return Topology(size, frozenset(first))


TOPOLOGIES = MappingProxyType(
    {"isolated": isolated, "complete": complete, "ring": ring, "star": star, "taught": taught}
)

_IN_WORDS = {
    "isolated": "no student from any other",
    "complete": "every student from all others",
    "ring": "every student from the one before it",
    "star": "all from student 0, and student 0 from all",
    "taught": "every student from all frozen peers",
}
"""Who learns from whom, by name of the topology."""


def graph_in_words(topology: str | Sequence[Sequence[int]], size: int) -> str:
    """Describe a topology of ``size`` students, given by name or edges, in one line."""
    if isinstance(topology, str):
        return f"{topology}: {_IN_WORDS[topology]}" if topology in _IN_WORDS else topology
    return f"as listed: {from_edges(size, topology).in_words()}"
