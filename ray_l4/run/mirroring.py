"""The copying of a run directory while the run goes on."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from ray_l4.config.cluster import ClusterConfig
from ray_l4.errors import RayL4Error
from ray_l4.store.mirror import mirror_of
from ray_l4.store.run_directory import RunDirectory


class Mirroring:
    """Brings the copy of a run up to date on a thread of its own: nobody who learns waits for a slow line."""

    def __init__(self, run: RunDirectory, cluster: ClusterConfig, tell: Callable[[str], None]) -> None:
        """``tell`` is told of what fails; the next push makes up for it. Does nothing if the profile wants no copy."""
        self._path = run.path
        self._mirror = mirror_of(run, cluster)
        self._tell = tell
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="mirror")
        self._pushes: list[Future[None]] = []

    def push(self) -> None:
        """Copy what the run directory holds now, and do not wait for it."""
        waits = self._pushes and not (self._pushes[-1].running() or self._pushes[-1].done())
        if self._mirror is not None and not waits:  # what waits will copy all that there is then
            self._pushes.append(self._thread.submit(self._push))

    def finish(self) -> None:
        """Copy what it holds now, and wait until that is done or the storage answers no more."""
        self.push()
        while self._pushes:
            self._pushes.pop(0).result()

    def _push(self) -> None:
        assert self._mirror is not None
        try:
            self._mirror.push(self._path)
        except RayL4Error as error:
            self._tell(f"warning: {error} The run goes on; what is missing is copied next time.")
