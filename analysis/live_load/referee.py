"""The referee: what a list of requests and of examples adds up to."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from analysis.live_load.asking import OK, Asked

ROUNDED = 1.0
"""Seconds that a promotion's time is cut by."""


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least ``share`` of the values do not exceed; NaN of none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan


@dataclass(frozen=True)
class Latency:
    """Percentiles of the seconds of requests that were answered at the first attempt."""

    requests: int
    p50: float
    p95: float
    p99: float
    longest: float

    @classmethod
    def of(cls, asked: Iterable[Asked]) -> Latency:
        """Return that of requests."""
        seconds = [one.seconds for one in asked if one.first == OK]
        shares = (percentile(seconds, share) for share in (0.5, 0.95, 0.99, 1.0))
        return cls(len(seconds), *shares)


def wrong_stage(asked: Iterable[Asked], promoted: Mapping[int, float]) -> list[Asked]:
    """Return the answers of stages that had not been promoted when they came. ``promoted``: stage -> when it was."""
    answered = (one for one in asked if one.answered)
    return [one for one in answered if one.stage is None or promoted.get(one.stage, math.inf) - ROUNDED > one.ended]


def stepped_back(asked: Iterable[Asked]) -> list[Asked]:
    """Return the answers of an earlier stage than one that had answered before the request began."""
    ordered = sorted((one for one in asked if one.answered and one.stage is not None), key=lambda one: one.due)
    ended = sorted(ordered, key=lambda one: one.ended)
    found, newest, at = [], -1, 0
    for one in ordered:
        while at < len(ended) and ended[at].ended < one.due:
            newest, at = max(newest, ended[at].stage or 0), at + 1
        if one.stage is not None and one.stage < newest:
            found.append(one)
    return found


def mixed(asked: Iterable[Asked], scored: Mapping[tuple[int, int, str], Mapping[str, str]]) -> list[Asked]:
    """Return the answers that are not those of the stage and student which they name.

    An answer is greedy, so one model gives one answer to a question: that of its scores if it was scored on it
    (``scored``: stage, student and task -> sample id -> answer), else the one given most often.
    """
    groups: dict[tuple[int, int, str, str], list[Asked]] = defaultdict(list)
    for one in asked:
        if one.answered and one.stage is not None and one.student is not None:
            groups[one.stage, one.student, one.task, one.sample_id].append(one)
    found = []
    for (stage, student, task, sample_id), same in groups.items():
        usual = Counter(one.answer for one in same).most_common(1)[0][0]
        right = scored.get((stage, student, task), {}).get(sample_id, usual)
        found += [one for one in same if one.answer.strip() != right.strip()]
    return found


@dataclass(frozen=True)
class Kept:
    """What became of the examples of a task that were acknowledged."""

    sent: int
    acknowledged: int
    different: int
    """Of those that were acknowledged; some are sent twice."""
    stored: int
    learned: int
    """By finished stages, as an example to learn or as a test."""
    lost: list[str]
    """Acknowledged, and not on disk."""
    doubled: list[str]
    """More than once on disk or in stages."""

    @property
    def waiting(self) -> int:
        """On disk and not learned yet."""
        return self.stored - self.learned


def kept(sent: int, acknowledged: Iterable[str], stored: Counter[str], learned: Counter[str]) -> Kept:
    """Compare the ids that were acknowledged with those on disk and those that stages learned."""
    replies = list(acknowledged)
    known = set(replies)
    twice = {id for counts in (stored, learned) for id, times in counts.items() if times > 1}
    there, taught = known & stored.keys(), known & learned.keys()
    lost = sorted(known - stored.keys())
    return Kept(sent, len(replies), len(known), len(there), len(taught), lost, sorted(twice))
