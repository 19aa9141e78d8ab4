"""Who learns from whom."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from ray_l4.errors import ConfigError

Pair = tuple[int, int]
"""An edge: a teacher and its student."""


@dataclass(frozen=True)
class Topology:
    """A directed graph of who learns from whom; ``(teacher, student)`` are its edges."""

    size: int
    edges: frozenset[Pair]
    frozen: frozenset[int] = frozenset()
    """Peers that predict and never learn: teachers that were trained before."""
    lost: frozenset[int] = frozenset()
    """Peers that were there and are not any more: they keep their number, and neither learn nor teach."""

    @property
    def present(self) -> tuple[int, ...]:
        """The peers that are not lost, in ascending order."""
        return tuple(peer for peer in range(self.size) if peer not in self.lost)

    @property
    def students(self) -> tuple[int, ...]:
        """The peers that learn, in ascending order."""
        return tuple(peer for peer in self.present if peer not in self.frozen)

    def teachers_of(self, peer: int) -> tuple[int, ...]:
        """The peers whose predictions ``peer`` learns from, in ascending order."""
        return tuple(sorted(teacher for teacher, student in self.edges if student == peer))

    def teaches(self, peer: int) -> bool:
        """Whether anyone learns from ``peer``."""
        return any(teacher == peer for teacher, _ in self.edges)

    def without(self, peers: Collection[int]) -> Topology:
        """The same graph after ``peers`` were lost: the others keep their numbers, and learn from who is left."""
        gone = frozenset(peers)
        edges = frozenset(edge for edge in self.edges if gone.isdisjoint(edge))
        return Topology(self.size, edges, self.frozen - gone, self.lost | gone)

    def in_words(self) -> str:
        """One line for people: ``0 learns from 3; 1 from 0; 2 from nobody``."""
        lines: list[str] = []
        for peer in self.students:
            names = [f"{t} (frozen)" if t in self.frozen else str(t) for t in self.teachers_of(peer)]
            lines.append(f"{peer}{'' if lines else ' learns'} from {', '.join(names) or 'nobody'}")
        return "; ".join(lines)


def isolated(size: int) -> Topology:
    """Peers that do not see each other."""
    return Topology(size, frozenset())


def complete(size: int) -> Topology:
    """Every peer learns from every other."""
    return Topology(size, frozenset((i, j) for i in range(size) for j in range(size) if i != j))


def ring(size: int) -> Topology:
    """Every peer learns from the one before it, the first from the last; two learn from each other."""
    return Topology(size, frozenset((i, (i + 1) % size) for i in range(size) if size > 1))


def star(size: int) -> Topology:
    """All learn from peer 0, and peer 0 from all."""
    return Topology(size, frozenset(edge for i in range(1, size) for edge in ((0, i), (i, 0))))


def taught(size: int) -> Topology:
    """``size`` students that learn from one teacher, the last peer, and not from each other."""
    return Topology(size + 1, frozenset((size, i) for i in range(size)), frozenset({size}))


def from_edges(
    size: int, edges: Sequence[Sequence[int]], where: Callable[[int], str] = "peers.topology.{}".format
) -> Topology:
    """Any digraph over ``size`` peers, from pairs of a teacher and its student. Who is in no pair learns from labels.

    ``where`` names the place of the pair with that index, for messages. Raises ConfigError, one line for each pair that
    names a peer that does not exist, has a peer teach itself, or stands there twice.
    """
    first: dict[Pair, int] = {}
    problems = []
    for index, (teacher, student) in enumerate(edges):
        edge = (teacher, student)
        unknown = next((peer for peer in edge if not 0 <= peer < size), None)
        if unknown is not None:
            problem = (
                f"there is no peer {unknown}: the {size} peers are counted from 0. Use 0 to {size - 1}, or set "
                f"peers.count to {max(edge) + 1} or more"
            )
        elif teacher == student:
            problem = "a peer cannot learn from itself. Name another teacher, or leave the pair out"
        elif edge in first:
            problem = f"stands at {where(first[edge])} already. Leave one of them out; all teachers weigh the same"
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
    "isolated": "nobody from anybody",
    "complete": "every student from all others",
    "ring": "every student from the one before it",
    "star": "all from student 0, and student 0 from all",
    "taught": "every student from one frozen teacher",
}


def graph_in_words(topology: str | Sequence[Sequence[int]], size: int) -> str:
    """One line for people on who learns from whom among ``size`` students, by name of the graph or from its edges."""
    if isinstance(topology, str):
        return f"{topology}: {_IN_WORDS[topology]}" if topology in _IN_WORDS else topology
    return f"as listed: {from_edges(size, topology).in_words()}"
