"""Pulses: how a worker shows that it is alive while it serves a call that takes long.

A thread of the worker's process writes a number that grows, and the span that the worker is in, to the key-value store
of Ray's control service; whoever watches reads it. A process that is stopped, hangs in the kernel, or in native code
that never gives Python's lock (GIL) back writes nothing; one that computes for long, without the lock as PyTorch does,
goes on. A thread of its own leaves the thread that serves calls, and with it PyTorch's number of threads, as they are.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from ray.experimental import internal_kv

_BEATS_PER_LIMIT = 12
"""Beats within the time after which a worker counts as hanging: a few may come late on a busy machine."""

_SPACE = b"ray_l4_pulses"

log = logging.getLogger("ray_l4.coordinator")


def beat(name: str, limit: float, span: Callable[[], tuple[float, str]]) -> None:
    """Start the thread that shows that this process is alive. ``span``: since when it does what, in a few words.

    ``limit``: seconds without a beat after which the watcher takes the process for one that hangs.
    """
    threading.Thread(target=_beat, args=(name, limit / _BEATS_PER_LIMIT, span), name="pulse", daemon=True).start()


def _beat(name: str, seconds: float, span: Callable[[], tuple[float, str]]) -> None:
    number = 0
    while True:
        number += 1
        try:
            since, doing = span()
            value = f"{number} {since:.1f} {doing}".encode()
            internal_kv._internal_kv_put(name, value, overwrite=True, namespace=_SPACE)
        except Exception as error:  # the control service is away for a moment; the next beat may get through
            log.debug("no pulse: %s", error)
        time.sleep(seconds)


class Pulse:
    """The pulse of one worker, as its watcher sees it, by the watcher's own clock."""

    def __init__(self, name: str, limit: float) -> None:
        """``limit``: seconds without a beat after which the worker hangs."""
        self.name = name
        self.limit = limit
        self.interval = limit / _BEATS_PER_LIMIT
        """Seconds between two beats."""
        self._value = b""
        self._since = self._read_at = 0.0

    def hangs(self) -> bool:
        """Return whether the last beat is older than the limit. A worker that has not begun to beat does not hang.

        Asks the store at most once per interval of beats, so that it may be called as often as one likes. A watcher
        that was away for longer than the limit, perhaps stopped together with the worker, begins to count anew.
        """
        now = time.monotonic()
        if now - self._read_at >= self.interval:
            value = self._read() or self._value
            if value != self._value or now - self._read_at > self.limit:
                self._value, self._since = value, now
            self._read_at = now
        return bool(self._value) and now - self._since > self.limit

    def silence(self) -> str | None:
        """Return how the worker came to a stop although its process exists; None if it is alive as far as known."""
        if not self.hangs():
            return None
        return f"no sign of life for {self.limit:g} s (timeouts.control){self.last_span()}"

    def last_span(self) -> str:
        """Return what the worker was doing at its last beat, as the end of a message; nothing if it is not known.

        The clock of the worker's machine says since when.
        """
        try:
            self._value = self._read() or self._value
        except Exception as error:  # the message is about something else
            log.debug("no pulse: %s", error)
        _, _, span = self._value.decode().partition(" ")
        since, _, doing = span.partition(" ")
        return f"; last span: {doing}, {max(time.time() - float(since), 0.0):.0f} s ago" if doing else ""

    def forget(self) -> None:
        """Remove the pulse of a worker that has ended from the store."""
        internal_kv._internal_kv_del(self.name, namespace=_SPACE)

    def _read(self) -> bytes | None:
        value: bytes | None = internal_kv._internal_kv_get(self.name, namespace=_SPACE)
        return value


@dataclass(frozen=True)
class _Watched:
    who: str
    pulse: Pulse
    team: str


class Pulses:
    """The pulses of all workers of a run, found by the worker or by a reference to the result of a call to it."""

    def __init__(self) -> None:
        self._watched: dict[Any, _Watched] = {}

    def watch(self, worker: Any, who: str, pulse: Pulse, team: str) -> None:
        """Watch a worker from now on. ``team``: workers of one team may wait for each other."""
        self._watched[worker._actor_id] = _Watched(who, pulse, team)

    def forget(self, worker: Any) -> None:
        """Watch a worker no longer."""
        watched = self._watched.pop(worker._actor_id, None)
        if watched is not None:
            watched.pulse.forget()

    def silence(self, worker: Any) -> str | None:
        """Return how a worker came to a stop although its process exists; None if it is alive as far as known."""
        watched = self._watched.get(worker._actor_id)
        return None if watched is None else watched.pulse.silence()

    def interval(self, references: Iterable[Any]) -> float:
        """Return how many seconds one may wait for ``references`` before one looks at the pulses again."""
        return min((watched.pulse.interval for watched in self._teams_of(references)), default=float("inf"))

    def silent(self, references: Iterable[Any]) -> str | None:
        """Return which worker hangs of those for which ``references`` may wait, and how; None if all are alive."""
        for watched in self._teams_of(references):
            silence = watched.pulse.silence()
            if silence is not None:
                return f"{watched.who}: {silence}"
        return None

    def last_spans(self, references: Iterable[Any]) -> str:
        """Return the last spans of the workers that serve ``references``, as the end of a message."""
        return "".join(watched.pulse.last_span() for watched in self._owners(references))

    def _owners(self, references: Iterable[Any]) -> list[_Watched]:
        if not self._watched:
            return []
        workers = dict.fromkeys(reference.task_id().actor_id() for reference in references)
        return [self._watched[worker] for worker in workers if worker in self._watched]

    def _teams_of(self, references: Iterable[Any]) -> list[_Watched]:
        owners = self._owners(references)
        teams = {watched.team for watched in owners}
        others = list(self._watched.values())  # the thread that writes checkpoints asks too
        return owners + [watched for watched in others if watched.team in teams and watched not in owners]
