"""The processes of a live service: which they are, what they hold in memory, and the service's start and end."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from analysis.faults.processes import has_ended, read_title
from ray_l4.errors import ClusterError
from ray_l4.store.atomic import matching

SERVICE, REPLICA, STUDENT, COMMAND = "service", "replica", "student", "learning command"
_MB = 1024 / 1e6
"""Megabytes of a kibibyte."""
_STOP = 120.0


class ServiceProcess:
    """The process of a service, which somebody else started, or which is started here, and again when it has ended."""

    def __init__(self, pid: int | None, command: Sequence[str] = (), output: Path | None = None) -> None:
        """``pid``: of a running service. ``command``: starts one, whose ``output`` is appended to a file."""
        self.pid, self._command, self._output = pid, command, output
        self._own: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it by its command."""
        assert self._command and self._output is not None
        with self._output.open("ab") as file:
            self._own = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, process_group=0
            )
        self.pid = self._own.pid

    def kill(self) -> None:
        """Kill it, and wait until it is gone."""
        assert self._own is not None
        self._own.kill()
        self._own.wait()

    def stop(self) -> int | None:
        """End it in order, if it was started here, and return its exit code."""
        if self._own is None:
            return None
        self._own.send_signal(signal.SIGTERM)
        try:
            return self._own.wait(_STOP)
        except subprocess.TimeoutExpired:
            self.kill()
            raise ClusterError(f"the service did not stop within {_STOP:g} s of SIGTERM, and was killed") from None

    def has_ended(self) -> bool:
        """Whether there is no such process any more."""
        return self.pid is None or (self._own.poll() is not None if self._own else has_ended(self.pid))

    def of_kind(self, kind: str) -> list[int]:
        """Return its processes of a kind that run now."""
        if self.pid is None or self.has_ended():
            return []
        if kind == SERVICE:
            return [self.pid]
        return [pid for pid in descendants(self.pid) if kind_of(pid) == kind and not has_ended(pid)]

    def memory(self) -> dict[str, float]:
        """Return the resident memory of the service and of its replicas, in MB."""
        own = {kind: [resident(pid) for pid in self.of_kind(kind)] for kind in (SERVICE, REPLICA)}
        return {kind: sum(sizes) for kind, sizes in own.items() if sizes}


def descendants(pid: int) -> Iterator[int]:
    """Yield the processes that a process started, and those that they started."""
    for thread in matching(Path(f"/proc/{pid}/task"), "*"):
        try:
            children = (thread / "children").read_text().split()
        except OSError:  # the thread has ended
            continue
        for child in map(int, children):
            yield child
            yield from descendants(child)


def kind_of(pid: int) -> str:
    """Return what a process below a service is; empty if it is nothing that matters here."""
    title = read_title(pid)
    if title.startswith("ray::Student"):
        return STUDENT
    if title.startswith("ray::ServeReplica"):
        return REPLICA
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:  # it has ended
        return ""
    return COMMAND if "ray_l4.cli" in words and {"extend", "resume"} & set(words) else ""


def resident(pid: int) -> float:
    """Return the resident memory of a process in MB; 0 if it has ended."""
    try:
        found = re.search(r"^VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    except OSError:
        return 0.0
    return int(found[1]) * _MB if found else 0.0


def kill(pid: int) -> bool:
    """Kill a process of this machine with -9; returns whether it was there."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def wait_until_gone(pids: Sequence[int], seconds: float) -> list[int]:
    """Wait until processes have ended, for so long at most; return those that have not."""
    until = time.monotonic() + seconds
    while (left := [pid for pid in pids if not has_ended(pid)]) and time.monotonic() < until:
        time.sleep(0.1)
    return left
