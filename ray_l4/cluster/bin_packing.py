"""How many students and evaluators go to which node. A search, since a first fit may refuse what has room."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

Resources: TypeAlias = Mapping[str, float]
Counts: TypeAlias = tuple[int, int]
"""Students and evaluators."""

UNIT = 10_000
"""Ray counts resources in ten-thousandths, rounded down, so that three thirds of a GPU fit on one."""

_COSTS: Mapping[str, Callable[[int, int], float]] = {
    "PACK": lambda here, total: here > 0,
    "SPREAD": lambda here, total: here**2,
    "STRICT_PACK": lambda here, total: 0 if here in (0, total) else math.inf,
    "STRICT_SPREAD": lambda here, total: 0 if here <= 1 else math.inf,
}
"""What a node costs that holds so many processes of all: as few nodes as possible, as evenly as possible, all on one,
one on each."""


def lay_out(
    wanted: Counts, student: Resources, evaluator: Resources, nodes: Sequence[Resources], strategy: str
) -> list[Counts] | None:
    """How many of the ``wanted`` go to each node under Ray's placement ``strategy``; None if they do not fit.

    Node by node, for all numbers of students and evaluators placed so far, the cheapest way to place them.
    """
    total = sum(wanted)
    plans = {(0, 0): _Plan()}
    for node in nodes:
        held = _what_fits(wanted, student, evaluator, node)
        longer: dict[Counts, _Plan] = {}
        for (students, evaluators), plan in plans.items():
            for here in held:
                placed = (students + here[0], evaluators + here[1])
                cost = plan.cost + _COSTS[strategy](sum(here), total)
                known = longer.get(placed)
                fits = placed[0] <= wanted[0] and placed[1] <= wanted[1] and cost < math.inf
                if fits and (known is None or cost < known.cost):
                    longer[placed] = _Plan(cost, here, plan)
        plans = longer
    return plans[wanted].layout() if wanted in plans else None


@dataclass(frozen=True)
class _Plan:
    """What the nodes looked at so far hold, as the last of them and the plan for those before it."""

    cost: float = 0
    here: Counts = (0, 0)
    before: _Plan | None = None

    def layout(self) -> list[Counts]:
        """What each node holds, from the first one on."""
        backwards, plan = [], self
        while plan.before is not None:
            backwards.append(plan.here)
            plan = plan.before
        return backwards[::-1]


def _what_fits(wanted: Counts, student: Resources, evaluator: Resources, node: Resources) -> list[Counts]:
    """All numbers of students and evaluators that a node can hold, the largest first: of equally cheap plans the first
    one found stays, so that nodes are filled in their order."""
    students, evaluators = wanted
    found: list[Counts] = []
    free: _Free | None = _Free.all_of(node)
    for held in range(students + 1):
        beside = free
        for more in range(evaluators + 1):
            if beside is None:
                break
            found.append((held, more))
            beside = beside.without(evaluator)
        free = free.without(student) if free is not None else None
    return found[::-1]


@dataclass(frozen=True)
class _Free:
    """What is left of a node, in units. Its GPUs are no pool: a process has a share in one of them, or whole ones."""

    amounts: Mapping[str, int]
    gpus: tuple[int, ...]

    @classmethod
    def all_of(cls, node: Resources) -> _Free:
        return cls({name: _units(amount) for name, amount in node.items()}, (UNIT,) * int(node.get("GPU", 0)))

    def without(self, bundle: Resources) -> _Free | None:
        """What a process leaves that reserves ``bundle``; None if there is no room for it."""
        left = {name: self.amounts.get(name, 0) - _units(amount) for name, amount in bundle.items()}
        gpus = _gpus_without(self.gpus, _units(bundle.get("GPU", 0)))
        return None if gpus is None or min(left.values(), default=0) < 0 else _Free({**self.amounts, **left}, gpus)


def _gpus_without(free: tuple[int, ...], amount: int) -> tuple[int, ...] | None:
    """Whole GPUs from those that are free, a share from the fullest that has it: as Ray's nodes do."""
    whole, share = divmod(amount, UNIT)
    left = list(free)
    for _ in range(whole):
        if UNIT not in left:
            return None
        left[left.index(UNIT)] = 0
    if share:
        enough = [there for there in left if there >= share]
        if not enough:
            return None
        left[left.index(min(enough))] -= share
    return tuple(left)


def _units(amount: float) -> int:
    return int(amount * UNIT + 1e-6)
