"""Ends the processes of a local Ray session when the command that started it is gone, even by SIGKILL.

A small process of its own, which needs nothing but the standard library. It reads a pipe whose writing end the command
alone holds; when the command ends, however that happens, the pipe ends. Ray's own processes notice the death of a
command slowly: some of them try to reach their cluster for a minute or two.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_BY_ITSELF = 0.5
"""Seconds for Ray's processes to end by themselves."""
_AFTER_SIGNAL = 1.0
"""Seconds for them to end after SIGTERM: whoever resumes the run has to wait for its coordinator."""
_AFTER_KILL = 5.0
"""Seconds for them to disappear after SIGKILL."""
_INTERVAL = 0.1


class Watchdog:
    """The command's side: the writing end of the pipe."""

    def __init__(self) -> None:
        """Start the watchdog, before Ray: a command may be killed while Ray starts."""
        reading, self._pipe = os.pipe()  # not inherited, so no process of Ray keeps it open
        try:
            subprocess.Popen(
                [sys.executable, "-I", "-S", __file__, str(os.getpid())],
                stdin=reading,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C and a closed terminal are not meant for it
                cwd="/",
            )
        finally:
            os.close(reading)

    def watch(self, session: Path) -> None:
        """Name the folder of the Ray session that has started. It is removed in the end."""
        os.write(self._pipe, f"{session}\n".encode())


def pattern_of(command: int, sessions: list[Path]) -> re.Pattern[bytes]:
    """Return what the command line or an open file of a process of these sessions contains.

    Ray puts the process number of the command into the name of its session, so one whose start was cut short is
    recognised too.
    """
    names = [re.escape(os.fsencode(session)) for session in sessions]
    either = names or [rb"/session_\d[\d_-]*_" + str(command).encode()]
    return re.compile(b"(?:" + b"|".join(either) + rb")(?![\w-])")


def processes_of(pattern: re.Pattern[bytes]) -> list[int]:
    """Return the processes that the pattern tells, and all that descend from them, but not this one."""
    parents: dict[int, int] = {}
    found: set[int] = set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with suppress(OSError):  # it has just ended, or belongs to another user
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            if state == "Z" or (entry / "ns" / "pid").readlink() != Path("/proc/self/ns/pid").readlink():
                continue  # in a container, numbers of processes mean something else
            parents[int(entry.name)] = int(parent)
            if _belongs(entry, pattern):
                found.add(int(entry.name))
    found |= {process for process in parents if not found.isdisjoint(_ancestors(process, parents))}
    return sorted(found - {os.getpid()})


def _belongs(entry: Path, pattern: re.Pattern[bytes]) -> bool:
    cmdline = (entry / "cmdline").read_bytes()
    if b"/ray/" in cmdline and pattern.search(cmdline):  # a process of Ray, not an editor that shows one of its logs
        return True
    return cmdline.startswith(b"ray::") and any(  # an actor has another title, but its log file is open
        pattern.search(os.fsencode(target)) for target in _open_files(entry)
    )


def _open_files(entry: Path) -> Iterator[str]:
    for link in (entry / "fd").iterdir():
        with suppress(OSError):
            yield str(link.readlink())


def _ancestors(process: int, parents: dict[int, int]) -> Iterator[int]:
    while (process := parents.get(process, 0)) > 1:
        yield process


def end_processes(pattern: re.Pattern[bytes], *, gently: bool = True) -> bool:
    """End all of these processes, also stopped ones; return whether none is left.

    ``gently``: give them time to end by themselves, and then after SIGTERM.
    """
    if gently:
        for process in _left_after(_BY_ITSELF, pattern):
            _signal(process, signal.SIGTERM)
        _left_after(_AFTER_SIGNAL, pattern)
    deadline = time.monotonic() + _AFTER_KILL
    while (left := processes_of(pattern)) and time.monotonic() < deadline:
        for process in left:  # also those that began while the others were being ended
            _signal(process, signal.SIGKILL)
        time.sleep(_INTERVAL)
    return not left


def _signal(process: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.kill(process, number)


def _left_after(seconds: float, pattern: re.Pattern[bytes]) -> list[int]:
    deadline = time.monotonic() + seconds
    while (left := processes_of(pattern)) and time.monotonic() < deadline:
        time.sleep(_INTERVAL)
    return left


def main() -> None:
    """Wait until the command is gone, then end what it left, and remove the folders of its sessions."""
    with os.fdopen(0, "rb") as pipe:
        sessions = [Path(os.fsdecode(line.rstrip(b"\n"))) for line in pipe]
    if end_processes(pattern_of(int(sys.argv[1]), sessions)):
        for session in sessions:
            shutil.rmtree(session, ignore_errors=True)


if __name__ == "__main__":
    main()
