"""Two simulated hosts: network namespaces of this machine, joined by a link of a chosen rate (iproute2, root)."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from ray_l4.errors import ClusterError

_DEVICE = "eth0"
_NETWORK = "10.99.0"
_BURST_SECONDS = 1e-3
"""Burst size, as seconds at the full rate. Less would slow the link down, more would let small messages bypass it."""
_LATENCY = "50ms"
"""Queueing time after which a packet is dropped."""
_GRACE = 3.0
"""Seconds for processes to end after a signal."""


@dataclass(frozen=True)
class Host:
    """One side of the link."""

    namespace: str
    address: str

    def inside(self, command: Sequence[str]) -> list[str]:
        """Return ``command`` wrapped to run on this host."""
        return ["ip", "netns", "exec", self.namespace, *command]

    def bytes_sent(self) -> int:
        """Return the bytes that have left through the link so far, headers included."""
        link = json.loads(_run("ip", "-n", self.namespace, "-json", "-stats", "link", "show", _DEVICE))
        return int(link[0]["stats64"]["tx"]["bytes"])

    def limit(self, gbit: float | None) -> None:
        """Limit the outgoing rate to ``gbit`` Gbit/s; None: unlimited."""
        place = ["tc", "-n", self.namespace, "qdisc"]
        if gbit is None:
            subprocess.run([*place, "del", "dev", _DEVICE, "root"], capture_output=True, check=False)
            return
        burst = round(gbit * 1e9 / 8 * _BURST_SECONDS)
        rate = ["rate", f"{round(gbit * 1e9)}bit", "burst", str(burst), "latency", _LATENCY]
        _run(*place, "replace", "dev", _DEVICE, "root", "tbf", *rate)

    def end_all(self) -> None:
        """End every process on this host, with SIGKILL those that outlive SIGTERM."""
        for how in (signal.SIGTERM, signal.SIGKILL):
            limit = time.monotonic() + _GRACE
            for pid in self._processes():
                _signal(pid, how)
            while self._processes() and time.monotonic() < limit:
                time.sleep(0.1)

    def _processes(self) -> list[int]:
        return [int(pid) for pid in _run("ip", "netns", "pids", self.namespace).split()]


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Provide two hosts that reach each other and nothing else. On exit, their processes end and they are removed.

    Raises ClusterError if namespaces cannot be created.
    """
    hosts = [Host(f"ray-l4-{os.getpid()}-{side}", f"{_NETWORK}.{side}") for side in (1, 2)]
    made: list[Host] = []
    try:
        for host in hosts:
            _run("ip", "netns", "add", host.namespace)
            made.append(host)
        one, other = hosts
        peer = ["peer", "name", _DEVICE, "netns", other.namespace]
        _run("ip", "link", "add", _DEVICE, "netns", one.namespace, "type", "veth", *peer)
        for host in hosts:
            _run("ip", "-n", host.namespace, "address", "add", f"{host.address}/24", "dev", _DEVICE)
            for device in ("lo", _DEVICE):
                _run("ip", "-n", host.namespace, "link", "set", device, "up")
        yield one, other
    finally:
        for host in made:
            host.end_all()
            _run("ip", "netns", "delete", host.namespace)


def why_not() -> str | None:
    """Return the reason why this machine cannot have such hosts; None if it can."""
    missing = [tool for tool in ("ip", "tc") if shutil.which(tool) is None]
    if missing:
        return f"{' and '.join(missing)} not found: install iproute2"
    if os.geteuid() != 0:
        return "network namespaces need root"
    try:
        with two_hosts() as (host, _):
            host.limit(1.0)
    except ClusterError as error:
        return str(error)
    return None


def _run(*command: str) -> str:
    """Run a command and return its output. Raises ClusterError if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr or done.stdout).strip().splitlines() or [f"exit status {done.returncode}"]
        raise ClusterError(f"{' '.join(command)}: {reason[-1]}")
    return done.stdout


def _signal(pid: int, how: signal.Signals) -> None:
    with suppress(ProcessLookupError):  # it has already ended
        os.kill(pid, how)
