"""Names of the items of a stream, in which a task may come back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence


def distinct(stream: Sequence[str]) -> tuple[str, ...]:
    """Return the tasks of a stream, each once, in the order in which they first come: the columns of a score matrix."""
    return tuple(dict.fromkeys(stream))


def item_names(stream: Sequence[str]) -> list[str]:
    """Return a name for every item of a stream: that of its task, and where a task comes back, ``task (2)``."""
    seen: Counter[str] = Counter()
    names = []
    for task in stream:
        seen[task] += 1
        names.append(task if seen[task] == 1 else f"{task} ({seen[task]})")
    return names
