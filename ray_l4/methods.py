"""The methods as data: who learns from whom, from which labels, with which replay.

One training loop serves them all. A new method is a new row here and, at most, one new loss.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from ray_l4.config.experiment import ExperimentConfig
from ray_l4.errors import ConfigError, nearest
from ray_l4.text.tokens import Head


@dataclass(frozen=True)
class Topology:
    """A directed graph of who learns from whom; ``(teacher, student)`` are its edges."""

    size: int
    edges: frozenset[tuple[int, int]]

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


TOPOLOGIES = MappingProxyType({"isolated": isolated, "complete": complete})


@dataclass(frozen=True)
class Method:
    """A row of the table."""

    name: str
    summary: str
    """One line for people."""
    peers: int
    """Number of peers unless the experiment says otherwise."""
    topology: Literal["isolated", "complete"]
    """Name of the graph in ``TOPOLOGIES``."""
    heads: tuple[Head, ...]
    """Heads with a loss: the answer (``qa``) and the whole text from the task token on (``lm``)."""
    labels: Literal["always", "first_stage"]
    """Stages in which current samples bear cross-entropy with their true labels."""
    replay: Literal["none", "generated"]
    """Where examples of earlier tasks come from; generated ones come from student 0 and are shared."""

    def graph(self, peers: int) -> Topology:
        """The topology for this many peers."""
        return TOPOLOGIES[self.topology](peers)

    def uses_labels(self, stage: int) -> bool:
        """Whether current samples bear cross-entropy in ``stage`` (counted from 0)."""
        return self.labels == "always" or stage == 0


def _table(rows: Iterable[Method]) -> Mapping[str, Method]:
    return MappingProxyType({row.name: row for row in rows})


METHODS = _table(
    [
        Method("finetune", "one model, answers only, nothing kept", 1, "isolated", ("qa",), "always", "none"),
        Method("lamol", "one model that replays what it generates", 1, "isolated", ("qa", "lm"), "always", "generated"),
        Method(
            "l4", "students that teach each other at every step", 2, "complete", ("qa", "lm"), "always", "generated"
        ),
        Method(
            "l4-eq12",
            "l4 by its equations 10-12 read literally: no labels after the first task (cannot learn a new task)",
            2,
            "complete",
            ("qa", "lm"),
            "first_stage",
            "generated",
        ),
    ]
)


def get_method(name: str) -> Method:
    """The row called ``name``. Raises ConfigError with the nearest known name."""
    try:
        return METHODS[name]
    except KeyError:
        raise ConfigError(f"method: unknown method {name!r}. {nearest(name, METHODS)}") from None


def num_peers(experiment: ExperimentConfig) -> int:
    """Number of peers of an experiment: its own, or its method's. Raises ConfigError for an unknown method."""
    method = get_method(experiment.method)
    return experiment.peers.count or method.peers
