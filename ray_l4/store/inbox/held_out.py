"""Which examples of a new task without tests of its own become its tests."""

from __future__ import annotations

from collections.abc import Iterable

from ray_l4.seeds import derive

SHARE = 0.2
MOST_TESTS = 500
"""Number of tests from which more would take time and tell little."""


def held_out(ids: Iterable[str], task: str, seed: int, share: float = SHARE) -> set[str]:
    """Return the ids of the examples that become tests: ``share`` of them, at least one, at most ``MOST_TESTS``.

    An example is chosen by a number that follows from the seed, the task and its id alone, so neither the order in
    which examples arrived nor how they were divided into segments matters. At least one example is left to be learned;
    of a single one, none is held out.
    """
    drawn = sorted(set(ids), key=lambda id: (derive(seed, "held out", task, id), id))
    wanted = max(1, round(share * len(drawn)))
    return set(drawn[: min(wanted, MOST_TESTS, len(drawn) - 1)]) if drawn and share else set()
