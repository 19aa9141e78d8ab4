"""How a fault is done to a process, from outside and without a hook in the program."""

from __future__ import annotations

import os
import resource
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from analysis.faults.processes import environment

SLOW_SECONDS = 0.7
"""A slow process stands still so long, three times: less than any time limit of the run."""

_KILL_ACTOR = """
import sys, ray
from ray._private import state
from ray._private.grpc_utils import init_grpc_channel
from ray.core.generated import gcs_service_pb2 as pb, gcs_service_pb2_grpc as grpc
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
print("ready", flush=True)
pid = int(sys.stdin.readline())
for key, actor in state.actors().items():
    if actor["State"] == "ALIVE" and actor["Pid"] == pid:
        request = pb.KillActorViaGcsRequest(actor_id=bytes.fromhex(key), force_kill=True, no_restart=True)
        grpc.ActorInfoGcsServiceStub(init_grpc_channel(sys.argv[1])).KillActorViaGcs(request, timeout=20)
        print("killed", flush=True)
"""
"""A second driver: it joins the run's Ray and has its control store end the actor of a process, as ``ray.kill``
does.
It has no handle of the actor."""


class ActorKiller:
    """``ray.kill`` at a moment's notice: the driver that does it has joined the run's Ray before."""

    def __init__(self, raylet: int) -> None:
        """Have a driver join the Ray of a raylet, without waiting. Raises OSError if the raylet has ended."""
        self.raylet = raylet
        self.has_killed = False
        words = Path(f"/proc/{raylet}/cmdline").read_bytes().decode(errors="replace").split("\0")
        address = next((word.partition("=")[2] for word in words if word.startswith("--gcs-address=")), "")
        self._process = subprocess.Popen(
            [sys.executable, "-c", _KILL_ACTOR, address],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment(raylet),  # with the token, if the run's Ray asks for one
        )

    def is_ready(self) -> bool:
        """Return whether it has joined."""
        assert self._process.stdout is not None, "it has a pipe"
        return bool(select.select([self._process.stdout], [], [], 0.0)[0]) and self._process.poll() is None

    def kill(self, pid: int) -> bool:
        """Kill the actor in process ``pid``; False if that failed."""
        self.has_killed = True
        output, _ = self._process.communicate(f"{pid}\n", timeout=30.0)
        return "killed" in output

    def close(self) -> None:
        """End the driver."""
        self._process.kill()
        self._process.wait()


def send(pid: int, number: signal.Signals) -> bool:
    """Send a signal; False if the process has ended."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def slow_down(pid: int, wait: Callable[[float], None]) -> bool:
    """Stop a process and let it go on, three times. ``wait`` waits for some seconds."""
    for _ in range(3):
        if not send(pid, signal.SIGSTOP):
            return False
        try:
            wait(SLOW_SECONDS)
        finally:
            send(pid, signal.SIGCONT)
        wait(0.1)
    return True


def fill_disk(pid: int) -> bool:
    """Let every write of a process to a file fail from now on, as on a full disk.

    Its limit of file sizes becomes nought: to the program, EFBIG is the same as ENOSPC, without a disk to fill.
    """
    try:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, resource.prlimit(pid, resource.RLIMIT_FSIZE)[1]))
    except ProcessLookupError:
        return False
    return True
