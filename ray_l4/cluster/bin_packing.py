"""Assigns students and evaluators to nodes, by search: a first fit may refuse a request that fits."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

Resources: TypeAlias = Mapping[str, float]
Counts: TypeAlias = tuple[int, int]
"""Number of students, number of evaluators."""

UNIT = 10_000
"""Ray counts resources in ten-thousandths, rounded down, so that three thirds of a GPU fit on one."""

_COSTS: Mapping[str, Callable[[int, int], float]] = {
    "PACK": lambda held, total: held > 0,
    "SPREAD": lambda held, total: held**2,
    "STRICT_PACK": lambda held, total: 0 if held in (0, total) else math.inf,
    "STRICT_SPREAD": lambda held, total: 0 if held <= 1 else math.inf,
}
"""Strategy -> the cost of a node that holds ``held`` of ``total`` processes.

The least total cost means: as few nodes as possible, as evenly as possible, all on one node, at most one per node.
"""


def assign(
    wanted: Counts, student: Resources, evaluator: Resources, nodes: Sequence[Resources], strategy: str
) -> list[Counts] | None:
    """Return how many of the ``wanted`` processes go to each node under a placement ``strategy`` of Ray.

    Returns None if they do not fit. Dynamic programming over the nodes: for every number of students and evaluators
    placed so far, keeps the cheapest assignment.
    """
    total = sum(wanted)
    cheapest = {(0, 0): _Assignment()}
    for node in nodes:
        options = _fitting_counts(wanted, student, evaluator, node)
        extended: dict[Counts, _Assignment] = {}
        for (students, evaluators), assignment in cheapest.items():
            for added in options:
                placed = (students + added[0], evaluators + added[1])
                cost = assignment.cost + _COSTS[strategy](sum(added), total)
                known = extended.get(placed)
                fits = placed[0] <= wanted[0] and placed[1] <= wanted[1] and cost < math.inf
                if fits and (known is None or cost < known.cost):
                    extended[placed] = _Assignment(cost, added, assignment)
        cheapest = extended
    return cheapest[wanted].counts_per_node() if wanted in cheapest else None


@dataclass(frozen=True)
class _Assignment:
    """An assignment of processes to the first nodes, as a linked list from the last of these nodes to the first."""

    cost: float = 0
    """Cost of all these nodes together."""
    counts: Counts = (0, 0)
    """Processes on the last node."""
    previous: _Assignment | None = None
    """The assignment to the nodes before the last; None if there are no nodes yet."""

    def counts_per_node(self) -> list[Counts]:
        """Return the number of processes on each node, in the order of the nodes."""
        backwards, assignment = [], self
        while assignment.previous is not None:
            backwards.append(assignment.counts)
            assignment = assignment.previous
        return backwards[::-1]


def _fitting_counts(wanted: Counts, student: Resources, evaluator: Resources, node: Resources) -> list[Counts]:
    """Return all numbers of students and evaluators that fit on a node together, the largest first.

    Among equally cheap assignments the first one found is kept, so this order fills the nodes one after another.
    """
    max_students, max_evaluators = wanted
    found: list[Counts] = []
    free: _FreeResources | None = _FreeResources.of(node)
    for students in range(max_students + 1):
        remaining = free
        for evaluators in range(max_evaluators + 1):
            if remaining is None:
                break
            found.append((students, evaluators))
            remaining = remaining.without(evaluator)
        free = free.without(student) if free is not None else None
    return found[::-1]


@dataclass(frozen=True)
class _FreeResources:
    """The unreserved resources of a node, in ``UNIT``-ths."""

    amounts: Mapping[str, int]
    gpus: tuple[int, ...]
    """The free part of each GPU: a process gets a share of one GPU, or whole GPUs, never parts of several."""

    @classmethod
    def of(cls, node: Resources) -> _FreeResources:
        return cls({name: _units(amount) for name, amount in node.items()}, (UNIT,) * int(node.get("GPU", 0)))

    def without(self, bundle: Resources) -> _FreeResources | None:
        """Return what is free once ``bundle`` is reserved; None if it does not fit."""
        left = {name: self.amounts.get(name, 0) - _units(amount) for name, amount in bundle.items()}
        gpus = _gpus_without(self.gpus, _units(bundle.get("GPU", 0)))
        if gpus is None or min(left.values(), default=0) < 0:
            return None
        return _FreeResources({**self.amounts, **left}, gpus)


def _gpus_without(free: tuple[int, ...], amount: int) -> tuple[int, ...] | None:
    """Take whole GPUs from those that are free, and a share from the fullest GPU that still has it, as Ray does."""
    whole, share = divmod(amount, UNIT)
    remaining = list(free)
    for _ in range(whole):
        if UNIT not in remaining:
            return None
        remaining[remaining.index(UNIT)] = 0
    if share:
        enough = [gpu for gpu in remaining if gpu >= share]
        if not enough:
            return None
        remaining[remaining.index(min(enough))] -= share
    return tuple(remaining)


def _units(amount: float) -> int:
    return int(amount * UNIT + 1e-6)
