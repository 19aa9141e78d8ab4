"""Steps that a run did again, from its log: with ``RAY_L4_DEBUG`` the coordinator logs every step that it has the
figures of, at once, and goes on with the same file after its own death."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

_LINE = re.compile(
    r"^(?P<time>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}) DEBUG \[\d+\] "
    r"figures of stage (?P<stage>\d+), step (?P<step>\d+), student (?P<student>\d+)$"
)


def repeated_steps(run: Path) -> list[float]:
    """Return when (in seconds since the epoch) each step of a student was done that had been done before."""
    seen: set[tuple[str, str, str]] = set()
    times = []
    for line in (run / "logs" / "coordinator.log").read_text(encoding="utf-8", errors="replace").splitlines():
        found = _LINE.match(line)
        if found is None:
            continue
        key = found["stage"], found["step"], found["student"]
        if key in seen:
            times.append(datetime.strptime(found["time"], "%Y-%m-%d %H:%M:%S,%f").timestamp())
        seen.add(key)
    return times


def dealt_out(times: Sequence[float], moments: Sequence[float]) -> list[int]:
    """Return for each of the ``moments``, in order, how many of ``times`` lie between it and the next one."""
    ends = [*moments[1:], float("inf")]
    return [sum(begin <= time < end for time in times) for begin, end in zip(moments, ends, strict=True)]
