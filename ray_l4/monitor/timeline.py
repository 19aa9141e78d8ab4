"""Record of the time spans that students, evaluators and the coordinator spend on each kind of work."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ray_l4.errors import DamagedError
from ray_l4.store.records import write_timeline
from ray_l4.store.run_directory import RunDirectory
from ray_l4.store.tables import read_table

log = logging.getLogger("ray_l4.coordinator")


class Timeline:
    """The spans of a run, across all its resumes."""

    def __init__(self, run: RunDirectory, tell: Callable[[str], None] = log.warning) -> None:
        """``tell`` is given a warning if those of the run so far are damaged."""
        self._run = run
        path = run.path / "timeline.parquet"
        try:
            table = read_table(path, ("lane", "kind", "label", "start", "end"))
        except DamagedError as error:
            tell(f"{str(error).rstrip('.')}. A new timeline begins.")
            table = None
        self._spans: list[dict[str, Any]] = [] if table is None else table.to_pylist()

    def add(self, lane: str, kind: str, label: str, seconds: float) -> None:
        """Add a span of this length that ends now; ``lane`` names the process that did the work."""
        end = time.time()
        self._spans.append({"lane": lane, "kind": kind, "label": label, "start": end - seconds, "end": end})

    @contextmanager
    def span(self, lane: str, kind: str, label: str) -> Iterator[None]:
        """Add a span for the ``with`` block, even if the block raises."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.add(lane, kind, label, time.monotonic() - began)

    def save(self) -> None:
        """Write all spans to the run directory."""
        write_timeline(self._run, self._spans)
