"""The account of a session: its figures as a table for people and as data."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from analysis.live_load.asking import OK, Asked, Tried
from analysis.live_load.processes import REPLICA, SERVICE
from analysis.live_load.referee import Kept, Latency
from analysis.live_load.teaching import AT_ONCE
from analysis.live_load.watching import Sample
from analysis.slope import Slope, slope
from ray_l4.report.markdown import table

QUIET, LEARNING, BURST = "quiet", "learning", "burst"
PHASES = {QUIET: "while nothing is learned", LEARNING: "while learning", BURST: f"while users send {AT_ONCE} at a time"}
WARM_UP = 10.0
"""Seconds of a process's life before which memory grows because it starts."""


@dataclass(frozen=True)
class Account:
    """What happened in a session."""

    asked: list[Asked]
    """All questions, in the order in which they were due."""
    steady: list[Asked]
    """Those of the steady stream alone, of which latency is told."""
    told: list[Tried]
    """All other requests."""
    samples: list[Sample]
    bursts: list[tuple[float, float]]
    """From when to when users asked or told many things at a time."""
    scores: dict[str, tuple[float | None, float | None]]
    """Task -> score before and after."""
    stages: dict[str, tuple[bool | None, str]] = field(default_factory=dict)
    """Stage learned -> whether it was promoted, and why or why not."""
    wrong_stage: list[Asked] = field(default_factory=list)
    stepped_back: list[Asked] = field(default_factory=list)
    mixed: list[Asked] = field(default_factory=list)
    compared: int = 0
    """Answers that were compared with those of the run's scores."""
    kept: dict[str, Kept] = field(default_factory=dict)
    killed: list[tuple[float, str]] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    trouble: str = ""
    """Why the session was cut short; empty if it was not."""

    @property
    def failed(self) -> int:
        """Requests that were never answered."""
        return sum(not one.answered for one in self.asked) + sum(one.value is None for one in self.told)

    @property
    def healed(self) -> Counter[str]:
        """Requests that a further attempt healed, by what came of the first."""
        answered = [one.first for one in self.asked if one.healed]
        return Counter(answered + [one.first for one in self.told if one.value is not None and one.first != OK])

    @property
    def complaints(self) -> list[str]:
        """What is not as it has to be."""
        counts = {
            "requests failed": self.failed,
            "requests failed at first, though nothing was killed": 0 if self.killed else self.healed.total(),
            "answers of a stage that had not been promoted": len(self.wrong_stage),
            "answers of an earlier stage than before": len(self.stepped_back) if self.in_one_process else 0,
            "answers that are not those of the model they name": len(self.mixed),
            "examples lost": sum(len(own.lost) for own in self.kept.values()),
            "examples doubled": sum(len(own.doubled) for own in self.kept.values()),
        }
        found = [f"{name}: {count}" for name, count in counts.items() if count]
        return found + ([self.trouble] if self.trouble else [])

    @property
    def in_one_process(self) -> bool:
        """Whether no replica was seen; each follows the run by itself."""
        return not any(REPLICA in sample.memory for sample in self.samples)

    def by_phase(self) -> dict[str, list[Asked]]:
        """Return the questions of the steady stream by what went on beside them when they were due."""
        at, found = 0, {phase: list[Asked]() for phase in PHASES}
        for one in sorted(self.steady, key=lambda one: one.due):
            while at + 1 < len(self.samples) and self.samples[at + 1].at <= one.due:
                at += 1
            in_burst = any(first <= one.ended and one.due <= last for first, last in self.bursts)
            learning = bool(self.samples) and self.samples[at].learning
            found[BURST if in_burst else LEARNING if learning else QUIET].append(one)
        return found


def memory(samples: Sequence[Sample], kind: str) -> tuple[float, float, Slope] | None:
    """Return the first and last memory in MB, and its slope in MB a minute during the longest life of the service."""
    lives: dict[int | None, list[Sample]] = {}
    for sample in samples:
        if kind in sample.memory and sample.answers:
            lives.setdefault(sample.pid, []).append(sample)
    if not lives:
        return None
    longest = max(lives.values(), key=lambda life: life[-1].at - life[0].at)
    late = [sample for sample in longest if sample.at - longest[0].at >= WARM_UP]
    grown = slope([sample.at / 60 - longest[0].at / 60 for sample in late], [sample.memory[kind] for sample in late])
    return longest[0].memory[kind], longest[-1].memory[kind], grown


def text(account: Account) -> str:
    """Return the account as tables for people."""
    parts = [_scores(account), _requests(account), _latency(account), _examples(account)]
    wrong = [f"- {line}" for line in account.complaints]
    if wrong:
        parts.append("\n".join(["Not as it has to be:", "", *wrong]))
    return "\n\n".join(part for part in parts if part)


def _scores(account: Account) -> str:
    rows = [(task, *(_number(score) for score in scores)) for task, scores in account.scores.items()]
    said = {True: "served", False: "refused", None: "not judged"}
    stages = [f"- {name}: {said[promoted]}; {why}" for name, (promoted, why) in account.stages.items()]
    return "\n".join([table(("score", "before", "after"), rows), *(["", *stages] if stages else [])])


def _requests(account: Account) -> str:
    firsts = ", ".join(f"{count} {kind}" for kind, count in account.healed.most_common()) or "0"
    rows = [
        ("questions asked", str(len(account.asked))),
        ("other requests", str(len(account.told))),
        ("failed", str(account.failed)),
        ("failed at first, healed by a further attempt", firsts),
        ("answers of a stage not promoted", str(len(account.wrong_stage))),
        (f"answers of another model than named ({account.compared} compared with scores)", str(len(account.mixed))),
        ("answers of an earlier stage than before", str(len(account.stepped_back))),
    ]
    if account.killed:
        counted = Counter(kind for _, kind in account.killed)
        rows.append(("killed -9", ", ".join(f"{count} {kind}" for kind, count in counted.items())))
    for kind in (SERVICE, REPLICA):
        found = memory(account.samples, kind)
        if found is not None:
            first, last, (value, error) = found
            grows = f"{value:+.1f} ± {error:.1f} a minute"
            rows.append((f"memory of the {kind}, MB", f"{first:.0f} to {last:.0f}, {grows}"))
    return table(("requests", ""), rows)


def _latency(account: Account) -> str:
    rows = []
    for phase, own in account.by_phase().items():
        found = Latency.of(own)
        values = (found.p50, found.p95, found.p99, found.longest)
        shown = ("–" if math.isnan(value) else f"{1000 * value:.0f}" for value in values)
        rows.append((PHASES[phase], str(found.requests), *shown))
    return table(("latency in ms", "requests", "p50", "p95", "p99", "max"), rows)


def _examples(account: Account) -> str:
    if not account.kept:
        return ""
    rows = []
    for task, own in account.kept.items():
        counts = (own.sent, own.acknowledged, own.different, own.learned, own.waiting, len(own.lost), len(own.doubled))
        rows.append((task, *map(str, counts)))
    header = ("examples", "sent", "acknowledged", "different", "learned", "not yet", "lost", "doubled")
    return table(header, rows)


def data(account: Account) -> dict[str, Any]:
    """Return all of it as JSON."""
    latency = {phase: asdict(Latency.of(own)) for phase, own in account.by_phase().items()}
    found = {kind: memory(account.samples, kind) for kind in (SERVICE, REPLICA)}
    return {
        **asdict(account),
        "failed": account.failed,
        "healed": dict(account.healed),
        "complaints": account.complaints,
        "latency": latency,
        "memory": found,
    }


def _number(score: float | None) -> str:
    return "–" if score is None else f"{score:.1f}"
