"""A tracker beside TensorBoard: it gets the same curves on a thread of its own, and its failures never stop a run."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from importlib.util import find_spec
from typing import Protocol

from ray_l4.errors import ConfigError, first_line, nearest

PACKAGES = {"wandb": "wandb", "mlflow": "mlflow"}
"""Name of a tracker, which is also that of its module -> the package to install."""

_MOST_WAITING = 100_000
"""Points that may wait for the tracker. Further ones are dropped: a slow connection must not hold up the training."""
_CLOSE_TIMEOUT = 30.0
"""Seconds that the end of a run waits for the tracker to send what it still has."""

log = logging.getLogger("ray_l4.coordinator")

Point = tuple[str, float, int]
"""Tag, value and step."""


class ScalarWriter(Protocol):
    """Something that curves are written to."""

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        """Add a point to the curve ``tag``."""

    def close(self) -> None:
        """Flush and close."""


def check_tracker(name: str) -> None:
    """Raise ConfigError if there is no such tracker, or if its package is not installed."""
    if name not in PACKAGES:
        raise ConfigError(f"--track {name}: unknown tracker. {nearest(name, PACKAGES)}")
    spec = find_spec(name)
    if spec is None or spec.origin is None:  # a folder of that name, such as the one that W&B makes, is no package
        raise ConfigError(
            f"--track {name}: the package {PACKAGES[name]} is not installed. Install it: pip install 'ray-l4[{name}]'"
        )


class QueuedWriter:
    """Opens a tracker with the first point and writes to it on a thread of its own; if it fails, warns and stops."""

    def __init__(
        self,
        name: str,
        opening: Callable[[], ScalarWriter],
        warn: Callable[[str], None],
        limit: int = _MOST_WAITING,
    ) -> None:
        """``warn`` gets at most one line. ``limit``: points that may wait."""
        self._name = name
        self._open = opening
        self._warn = warn
        self._waiting: queue.Queue[Point | None] = queue.Queue(limit)
        self._failed = False
        self._thread: threading.Thread | None = None

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        """Add a point to the curve ``tag``, without waiting."""
        if self._failed:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=f"tracker {self._name}", daemon=True)
            self._thread.start()
        try:
            self._waiting.put_nowait((tag, value, step))
        except queue.Full:
            self._fail(f"it takes no more points while {self._waiting.maxsize:,} wait")

    def close(self, timeout: float = _CLOSE_TIMEOUT) -> None:
        """Have the tracker send what it has, and wait for that up to ``timeout`` seconds."""
        if self._thread is None:
            return
        if not self._failed:
            try:
                self._waiting.put(None, timeout=timeout)
            except queue.Full:
                self._fail(f"it did not take all points within {timeout:g} s")
                return
        self._thread.join(timeout)
        if self._thread.is_alive():
            self._fail(f"it did not end within {timeout:g} s")

    def _work(self) -> None:
        # Whatever a tracker raises (a missing key, no network, a full disk of its own) must not end the run.
        try:
            tracker = self._open()
            while not self._failed and (point := self._waiting.get()) is not None:
                tracker.add_scalar(*point)
            tracker.close()
        except (Exception, SystemExit) as error:
            log.warning("%s failed", self._name, exc_info=error)
            self._fail(f"{type(error).__name__}: {first_line(error)}")

    def _fail(self, reason: str) -> None:
        """Write no more, and warn the first time."""
        if not self._failed:
            self._failed = True
            self._warn(
                f"warning: {self._name} gets no more curves ({reason}); the run goes on, and TensorBoard has all"
            )
