"""Warnings of training that goes wrong, from the figures of its steps: students that diverge, peers that collapse.

Both are judged on medians of the newest ``WINDOW`` steps, which a spike does not move, and must hold for as many steps
in a row. The thresholds were chosen on the step figures of 99 runs, none of which went wrong (METHODS.md#warnings).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from math import inf, isfinite
from statistics import median
from typing import NamedTuple

WINDOW = 25
"""Steps of a median, and steps in a row for which something must hold."""
RISE = 2.0
"""A loss has risen if its median is so many times its smallest one in the stage,"""
LEAST_RISE = 0.5
"""and so much above it, in nats. In runs that went well it rose to at most 1.7 times."""
PEERS = 1.5
"""It must also be so many times that of the best peer, or be back where the stage began."""
BEHIND = 2.0
"""A student that has unlearned nothing diverges if its loss is so many times that of the best peer,"""
LITTLE = 0.7
"""and still at least this share of what it was in the first steps of whoever began best. In runs that went well, the
loss was at most 1.7 times that of the best peer."""
EQUAL = 1e-3
"""Peers have collapsed if their predictions differ by less than this share of the loss. In runs that went well, it was
at least 0.006."""
LEAST_LOSS = 0.05
"""Smallest loss, in nats, at which there is still something to learn from peers."""


class Trouble(NamedTuple):
    """What is wrong with a student's training."""

    kind: str
    student: int
    step: int
    text: str
    """What is the case, what was expected, and what to try; it goes on after "student 0 " and the place."""


@dataclass
class _Student:
    """What is known of one student's steps in the stage."""

    losses: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    distances: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    first: float = inf
    best: float = inf
    in_a_row: dict[str, int] = field(default_factory=dict)

    def add(self, loss: float, distance: float) -> None:
        self.losses.append(loss)
        self.distances.append(distance)
        if self.is_known:
            self.first = self.loss if self.first == inf else self.first
            self.best = min(self.best, self.loss)

    @property
    def is_known(self) -> bool:
        return len(self.losses) == WINDOW

    @property
    def loss(self) -> float:
        return median(self.losses)

    @property
    def distance(self) -> float:
        return median(self.distances)

    def holds(self, kind: str, now: bool) -> bool:
        """Note whether something holds now, and return whether it has for long enough, for the first time."""
        self.in_a_row[kind] = self.in_a_row.get(kind, 0) + 1 if now else 0
        return self.in_a_row[kind] == WINDOW


class TroubledTraining:
    """Watches the steps of one stage. Each student is warned of once for each kind of trouble."""

    def __init__(self, lm_weight: float, taught_by_peers: Collection[int]) -> None:
        """``lm_weight``: weight of the language-model loss. ``taught_by_peers``: students that learn from
        each other, rather than from nobody or from teachers that do not learn."""
        self._lm_weight = lm_weight
        self._taught_by_peers = frozenset(taught_by_peers)
        self._students: dict[int, _Student] = {}
        self._told: set[tuple[str, int]] = set()

    def add(self, step: int, figures: Mapping[int, Mapping[str, float]]) -> list[Trouble]:
        """Add a step's figures of the students that learned in it; returns what has newly gone wrong.

        A step whose loss is not finite was skipped, and does not count.
        """
        learned = []
        for student, own in sorted(figures.items()):
            loss, distance = self._sum(own, "nll"), self._sum(own, "kd")
            if isfinite(loss) and not own.get("skipped"):
                self._students.setdefault(student, _Student()).add(loss, distance if isfinite(distance) else inf)
                learned.append(student)
        found = [self._diverges(student, step) for student in learned]
        found += [self._has_collapsed(student, step) for student in learned if student in self._taught_by_peers]
        news = [own for own in found if own is not None and (own.kind, own.student) not in self._told]
        self._told |= {(own.kind, own.student) for own in news}
        return news

    def _sum(self, figures: Mapping[str, float], name: str) -> float:
        """Return a figure of both heads, weighted as in the objective."""
        return (figures.get(f"{name}_qa") or 0.0) + self._lm_weight * (figures.get(f"{name}_lm") or 0.0)

    def _diverges(self, student: int, step: int) -> Trouble | None:
        own = self._students[student]
        if not own.is_known:
            return None
        peer = min(
            (other.loss for key, other in self._students.items() if key != student and other.is_known), default=inf
        )
        has_risen = own.loss >= max(RISE * own.best, own.best + LEAST_RISE)
        is_alone = own.loss >= PEERS * peer or own.loss >= own.first
        begin = min(other.first for other in self._students.values())
        is_behind = own.loss >= LITTLE * begin and own.loss >= max(BEHIND * peer, peer + LEAST_RISE)
        if not own.holds("divergence", (has_risen and is_alone) or is_behind):
            return None
        limit = RISE * (peer if is_behind and not has_risen else own.best)
        others = "" if peer == inf else f", that of its best peer is {peer:.3g}"
        text = (
            f"diverges: its loss on labels is {own.loss:.3g} (median of {WINDOW} steps), its best was {own.best:.3g}"
            f"{others}; expected: below {limit:.3g}. Try a lower learning rate (optim.lr, or lr in peers.each for this "
            "peer alone), a longer optim.warmup, or a smaller training.max_grad_norm."
        )
        return Trouble("divergence", student, step, text)

    def _has_collapsed(self, student: int, step: int) -> Trouble | None:
        own = self._students[student]
        if not own.is_known:
            return None
        least = EQUAL * own.loss
        if not own.holds("collapse", own.loss >= LEAST_LOSS and own.distance < least):
            return None
        text = (
            f"learns nothing from its peers any more: their predictions differ by {own.distance:.3g} nats (median of "
            f"{WINDOW} steps), while its loss on labels is {own.loss:.3g}; expected: at least {least:.3g}. Make the "
            "peers differ: peers.init: own for models from scratch, dropout, another seed, learning rate or model for "
            "one (peers.each); or lower distillation.weight."
        )
        return Trouble("collapse", student, step, text)
