"""Who did what from when to when."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow.parquet as pq

from ray_l4.store.records import write_timeline
from ray_l4.store.run_directory import RunDirectory


class Timeline:
    """The spans of a run, over all its resumes."""

    def __init__(self, run: RunDirectory) -> None:
        self._run = run
        path = run.path / "timeline.parquet"
        self._spans: list[dict[str, Any]] = pq.read_table(path).to_pylist() if path.is_file() else []

    def add(self, lane: str, kind: str, label: str, seconds: float) -> None:
        """Note a span of this length that ends now."""
        end = time.time()
        self._spans.append({"lane": lane, "kind": kind, "label": label, "start": end - seconds, "end": end})

    @contextmanager
    def span(self, lane: str, kind: str, label: str) -> Iterator[None]:
        """Note the time that what is inside takes."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.add(lane, kind, label, time.monotonic() - began)

    def save(self) -> None:
        """Write all of it to the run directory."""
        write_timeline(self._run, self._spans)
