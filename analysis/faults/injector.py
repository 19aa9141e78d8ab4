"""Injects the faults of one run, and has ready what that takes."""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import suppress

from analysis.faults.command import Command
from analysis.faults.fault import Fault
from analysis.faults.injection import ActorKiller, fill_disk, send, slow_down
from analysis.faults.processes import Processes
from analysis.faults.subjects import Nodes


class Injector:
    """Strikes processes of a run. A ``ray.kill`` needs a driver that has joined the run's Ray before."""

    def __init__(self, command: Command, processes: Processes, nodes: Nodes | None) -> None:
        self._command, self._processes, self._nodes = command, processes, nodes
        self._killer: ActorKiller | None = None

    def can(self, fault: Fault) -> bool:
        """Return whether the fault can be injected at once; begin to prepare it if not."""
        return fault.what != "ray_kill" or self._has_killer()

    def strike(self, fault: Fault, victim: int, wait: Callable[[float], None]) -> bool:
        """Inject a fault; False if the victim has just ended. ``wait`` waits for some seconds."""
        if fault.what == "slow":
            return slow_down(victim, wait)
        if fault.what == "disk_full":
            return fill_disk(victim)
        if fault.what == "ray_kill":
            assert self._killer is not None, "the injector was not asked whether it can"
            return self._killer.kill(victim)
        if fault.what == "node":
            assert self._nodes is not None, "there are no nodes"
            self._nodes.remove(victim)
            return True
        return send(victim, signal.SIGSTOP if fault.what == "stop" else signal.SIGKILL)

    def close(self) -> None:
        """End the driver, if there is one."""
        if self._killer is not None:
            self._killer.close()
            self._killer = None

    def _has_killer(self) -> bool:
        raylets = self._processes.of_kind("raylet", self._command.driver())
        if self._killer is not None and (self._killer.has_killed or self._killer.raylet not in raylets):
            self.close()
        if self._killer is None and raylets:
            with suppress(OSError):
                self._killer = ActorKiller(raylets[-1])
        return self._killer is not None and self._killer.is_ready()
