"""Follows a run: when another stage is to be served, its checkpoint is loaded beside the old one and swapped in."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

from ray_l4.errors import first_line
from ray_l4.serve.choice import served_checkpoint
from ray_l4.serve.served_model import Loader
from ray_l4.serve.service import Service
from ray_l4.store.promotion import FILE
from ray_l4.store.run_directory import RunDirectory

log = logging.getLogger("ray_l4.serve")

INTERVAL = 1.0
"""Seconds between two looks at the run directory."""
_WATCHED = ("state.json", FILE, "scores")
"""What says which checkpoint is served: progress, promotions, and scores by which a student is chosen."""
_LONGEST = 60.0
"""Seconds at most until a checkpoint that could not be loaded is tried again; the first time after one interval."""


class Follower:
    """Keeps a service at the checkpoint that its run serves, on a thread of its own."""

    def __init__(self, run: RunDirectory, service: Service, loader: Loader, interval: float = INTERVAL) -> None:
        """Begin to watch."""
        self._run, self._service, self._loader, self._interval = run, service, loader, interval
        self._seen: list[tuple[int, int, int]] | None = None
        self._wait = 0.0
        self._again = 0.0
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="follower", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Watch no more. A checkpoint that is being loaded is not waited for."""
        self._closed.set()

    def _watch(self) -> None:
        while not self._closed.wait(self._interval):
            seen = [_stamp(self._run.path / name) for name in _WATCHED]
            due = self._wait and time.monotonic() >= self._again
            if seen == self._seen and not due:
                continue
            self._seen = seen
            try:
                self._catch_up()
                self._wait = 0.0
            except Exception as error:  # whatever it is: the old model goes on, and the new one is tried again
                self._wait = min(_LONGEST, self._wait * 2 or self._interval)
                self._again = time.monotonic() + self._wait
                self._service.meter.failed_loads.inc()
                log.warning(
                    "cannot serve what the run promotes, tried again in %.0f s: %s", self._wait, first_line(error)
                )

    def _catch_up(self) -> None:
        current = self._service.current
        if current is None and not self._run.state().stages_done:
            return
        wanted = served_checkpoint(self._run)
        if current is not None and current.checkpoint == wanted:
            return
        new = self._loader.load(wanted.folder)
        if self._closed.is_set():
            new.close()
        else:
            self._service.swap(new)


def _stamp(path: Path) -> tuple[int, int, int]:
    try:
        found = path.stat()
    except FileNotFoundError:
        return (0, 0, 0)
    return (found.st_mtime_ns, found.st_ino, found.st_size)
