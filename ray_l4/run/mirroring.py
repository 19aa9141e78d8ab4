"""Copies a run directory to the profile's storage while the run goes on."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from ray_l4.config.cluster import ClusterConfig
from ray_l4.errors import RayL4Error
from ray_l4.store.mirror import mirror_of
from ray_l4.store.run_directory import RunDirectory


class Mirroring:
    """Updates the copy of a run on a thread of its own, so that training never waits for a slow connection."""

    def __init__(self, run: RunDirectory, cluster: ClusterConfig, tell: Callable[[str], None]) -> None:
        """``tell`` gets a warning when a copy fails; the next one includes what is missing.

        Does nothing if the profile has no ``storage_path``.
        """
        self._path = run.path
        self._mirror = mirror_of(run, cluster)
        self._tell = tell
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="mirror")
        self._pushes: list[Future[None]] = []

    def push(self) -> None:
        """Copy the run directory as it is now, without waiting for the copy."""
        queued = self._pushes and not (self._pushes[-1].running() or self._pushes[-1].done())
        if self._mirror is not None and not queued:  # a queued copy includes all that exists when it starts
            self._pushes.append(self._thread.submit(self._push))

    def finish(self) -> None:
        """Copy the run directory as it is now, and wait until that succeeds or fails."""
        self.push()
        while self._pushes:
            self._pushes.pop(0).result()

    def _push(self) -> None:
        assert self._mirror is not None
        try:
            self._mirror.push(self._path)
        except RayL4Error as error:
            self._tell(f"warning: {error} The run goes on; the next copy includes what is missing.")
