"""Pulses: how a worker shows that it is alive while it serves a call that takes long.

A thread of the worker's process writes a number that grows, and what the worker is doing, to the key-value store of
Ray's control service; whoever watches reads it. A process that is stopped or hangs in the kernel writes nothing. A
thread of its own leaves the thread that serves calls, and with it PyTorch's number of threads, as they are.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from ray.experimental import internal_kv

_BEATS_PER_LIMIT = 12
"""Beats within the time after which a worker counts as hanging: a few may come late on a busy machine."""

_SPACE = b"ray_l4_pulses"

log = logging.getLogger("ray_l4.coordinator")


def beat(name: str, limit: float, doing: Callable[[], str]) -> None:
    """Start the thread that shows that this process is alive. ``doing``: what it is doing, in a few words.

    ``limit``: seconds without a beat after which the watcher takes the process for one that hangs.
    """
    threading.Thread(target=_beat, args=(name, limit / _BEATS_PER_LIMIT, doing), name="pulse", daemon=True).start()


def _beat(name: str, seconds: float, doing: Callable[[], str]) -> None:
    number = 0
    while True:
        number += 1
        try:
            internal_kv._internal_kv_put(name, f"{number} {doing()}".encode(), overwrite=True, namespace=_SPACE)
        except Exception as error:  # the control service is away for a moment; the next beat may get through
            log.debug("no pulse: %s", error)
        time.sleep(seconds)


class Pulse:
    """The pulse of one worker, as its watcher sees it, by the watcher's own clock."""

    def __init__(self, name: str, limit: float) -> None:
        """``limit``: seconds without a beat after which the worker hangs."""
        self.name = name
        self.limit = limit
        self.doing = ""
        """What the worker was doing at its last beat."""
        self._number = b""
        self._since = self._read_at = 0.0

    def hangs(self) -> bool:
        """Return whether the last beat is older than the limit. A worker that has not begun to beat does not hang.

        Asks the store at most once per interval of beats, so that it may be called as often as one likes.
        """
        now = time.monotonic()
        if now - self._read_at >= self.limit / _BEATS_PER_LIMIT:
            number, _, doing = (self._read() or self._number).partition(b" ")
            if number != self._number:
                self._number, self._since, self.doing = number, now, doing.decode()
            self._read_at = now
        return bool(self._number) and now - self._since > self.limit

    def forget(self) -> None:
        """Remove the pulse of a worker that has ended from the store."""
        internal_kv._internal_kv_del(self.name, namespace=_SPACE)

    def _read(self) -> bytes | None:
        value: bytes | None = internal_kv._internal_kv_get(self.name, namespace=_SPACE)
        return value
