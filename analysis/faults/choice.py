"""Which of the planned faults comes next, whom it befalls, and when."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence

from analysis.faults.fault import COMMON, Fault
from analysis.faults.watching import PAUSE, Watching

_SOON = 0.3
"""Seconds that a phase may be away before it counts as over."""


class Choice:
    """Waits for whichever planned phase comes first, and for a random moment in it."""

    def __init__(
        self,
        watching: Watching,
        victims: Callable[[Fault], list[int]],
        delay: Callable[[str], float],
        generator: random.Random,
    ) -> None:
        """``victims`` returns whom a fault may befall now; ``delay``, how long to wait in a phase."""
        self._watching, self._victims, self._delay, self._random = (watching, victims, delay, generator)

    def next(self, pending: Sequence[Fault], limit: float) -> tuple[Fault, int] | None:
        """Return the next fault and its victim, at its moment; None if none comes within ``limit`` seconds."""
        pending = self._with_means(pending)
        deadline = time.monotonic() + limit
        while self._watching.until(lambda: bool(self._possible(pending)), deadline - time.monotonic()):
            possible = self._possible(pending)
            if not possible:
                continue
            fault = self._random.choice(possible)
            rarer = [other for other in pending if other.phase not in COMMON] if fault.phase in COMMON else []
            if self._watching.until(lambda rarer=rarer: bool(self._possible(rarer)), self._delay(fault.phase)):  # type: ignore[misc]
                continue
            victims = self._soon(fault)
            if victims:
                return fault, self._random.choice(victims)
        return None

    def _with_means(self, pending: Sequence[Fault]) -> list[Fault]:
        """Return the faults that may come next: before one in ``resume`` can come, something has to end a session."""
        means = [fault for fault in pending if fault.ends_session and fault.phase not in ("start", "resume")]
        if any(fault.phase == "resume" for fault in pending) and not means:
            phase = self._random.choice(("forward", "exchange", "backward"))
            return [*pending, Fault("kill", "command", phase)]
        return list(pending)

    def _possible(self, pending: Sequence[Fault]) -> list[Fault]:
        """Return the faults whose phase it is and that have a victim; if there are any, those in rare phases only."""
        possible = [fault for fault in pending if self._victims(fault)]
        return [fault for fault in possible if fault.phase not in COMMON] or possible

    def _soon(self, fault: Fault) -> list[int]:
        """Return whom a fault may befall as soon as that is possible again: phases of a step come and go."""
        deadline = time.monotonic() + _SOON
        while not (victims := self._victims(fault)) and time.monotonic() < deadline:
            self._watching.wait(PAUSE)
        return victims
