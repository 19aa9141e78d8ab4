"""The context that all parts of a run share while it goes on."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from ray_l4.config.cluster import ClusterConfig
from ray_l4.errors import RayL4Error
from ray_l4.monitor.curves import Curves
from ray_l4.monitor.progress import Progress
from ray_l4.monitor.timeline import Timeline
from ray_l4.run.mirroring import Mirroring
from ray_l4.setup.setup import Setup
from ray_l4.store.run_directory import RunDirectory


class StoppedError(RayL4Error):
    """The user asked the run to stop."""

    exit_code = 130


@dataclass(frozen=True)
class RunContext:
    """The settings of a run, its outputs, and the flag by which the user stops it."""

    setup: Setup
    cluster: ClusterConfig
    directory: RunDirectory
    progress: Progress
    curves: Curves
    timeline: Timeline
    mirroring: Mirroring
    stop: threading.Event

    def heed_stop(self) -> None:
        """Raise StoppedError if the user asked the run to stop."""
        if self.stop.is_set():
            raise StoppedError(f"stopped. To continue: ray-l4 resume {self.directory.path}")
