"""What a service counts, for Prometheus."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import prometheus_client as prometheus
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, multiprocess

CONTENT_TYPE = prometheus.CONTENT_TYPE_LATEST
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_SHARED = "PROMETHEUS_MULTIPROC_DIR"
_ROWS = (1, 2, 4, 8, 16, 32, 64)


class Meter:
    """The counters of one process; or of all that share a folder (``PROMETHEUS_MULTIPROC_DIR``), which a page tells."""

    def __init__(self) -> None:
        self.registry = own = CollectorRegistry()
        self.requests = Counter("ray_l4_requests", "Requests answered.", ["route", "method", "code"], registry=own)
        self.seconds = Histogram(
            "ray_l4_request_seconds", "Time of a request.", ["route"], registry=own, buckets=_SECONDS
        )
        self.in_progress = Gauge(
            "ray_l4_requests_in_progress", "Requests under way.", registry=own, multiprocess_mode="livesum"
        )
        self.queue = Gauge(
            "ray_l4_queue_length", "Requests that wait for the model.", registry=own, multiprocess_mode="livesum"
        )
        self.rows = Histogram("ray_l4_batch_rows", "Requests answered together in a step.", registry=own, buckets=_ROWS)
        self.tokens = Counter("ray_l4_tokens", "Tokens of prompts and of answers.", ["kind"], registry=own)
        self.stage = Gauge(
            "ray_l4_served_stage",
            "Stage that is served, from 0; -1 if there is none.",
            registry=own,
            multiprocess_mode="liveall",
        )
        self.student = Gauge(
            "ray_l4_served_student", "Student that is served.", registry=own, multiprocess_mode="liveall"
        )
        self.swaps = Counter("ray_l4_swaps", "Times that another checkpoint was swapped in.", registry=own)
        self.failed_loads = Counter("ray_l4_failed_loads", "Checkpoints that could not be loaded.", registry=own)
        self.stage.set(-1)

    def page(self) -> bytes:
        """Return all values in Prometheus' text format."""
        folder = os.environ.get(_SHARED)
        if folder is None:
            return prometheus.generate_latest(self.registry)
        _forget_the_dead(Path(folder))
        everyone = CollectorRegistry()
        multiprocess.MultiProcessCollector(everyone)
        return prometheus.generate_latest(everyone)


def _forget_the_dead(folder: Path) -> None:
    """Remove what processes that have ended say of the present; what they counted stays."""
    for path in folder.glob("gauge_live*_*.db"):
        pid = int(path.stem.rpartition("_")[2])
        if not Path(f"/proc/{pid}").is_dir():
            with suppress(FileNotFoundError):  # another process has just removed it
                multiprocess.mark_process_dead(pid, str(folder))
