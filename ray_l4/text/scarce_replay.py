"""Warnings of tasks of which hardly anything is replayed, because few generated examples were valid."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

ENOUGH_VALID = 0.5
"""Share of a task's generated examples that must be valid, or the user is warned."""


def scarce_replay(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return a warning for each task with too few valid examples among all ``rows`` that were generated for a stage.

    A row has the ``task``, whether it is ``valid``, the ``reason`` if not, and, except in early runs, the ``student``
    that generated it. Each student is judged on its own: if every one replays its own examples, all get as many as the
    one with the fewest.
    """
    groups: dict[tuple[str, int | None], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["task"], row.get("student")), []).append(row)
    several = len({student for _, student in groups}) > 1
    return [
        _warning(f"{task} by student {student}" if several else task, own)
        for (task, student), own in groups.items()
        if _num_valid(own) < ENOUGH_VALID * len(own)
    ]


def _num_valid(rows: Sequence[Mapping[str, Any]]) -> int:
    return sum(bool(row["valid"]) for row in rows)


def _warning(of_what: str, rows: Sequence[Mapping[str, Any]]) -> str:
    valid, reasons = _num_valid(rows), Counter(row["reason"] for row in rows if not row["valid"])
    why = "; ".join(f"{reason}: {count}" for reason, count in reasons.most_common())
    return (
        f"{valid} of {len(rows)} generated examples of {of_what} are valid ({why}), so "
        f"{'little' if valid else 'nothing'} of it is replayed and it may be forgotten. More training.epochs or a "
        "larger training.lm_weight teach the model to write examples; a small replay.max_length or a high "
        "replay.temperature spoils them."
    )
