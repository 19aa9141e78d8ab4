"""The processes of a run, seen from outside through ``/proc``: who they are, and what Ray's actors do just now."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

MARK = "RAY_L4_FAULTS_MARK"
"""Environment variable by which the descendants of a command are recognised, also after its death."""

_ACTORS = {"ray::Student": "student", "ray::Evaluator": "evaluator", "ray::CoordinatorActor": "coordinator"}
_PROGRAMS = {"raylet": "raylet", "gcs_server": "gcs"}
_WORK = {
    "ray::Student.forward",
    "ray::Student.advance",
    "ray::Evaluator.replay",
    "ray::Evaluator.answer",
    "ray::Evaluator.score",
}
_SCAN_SECONDS = 0.1
_LOOKS = 10
"""A process that is not marked is looked at again so often: while it begins, its environment is empty."""


def read_title(pid: int) -> str:
    """Return the first word of a process's command line; empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().partition(b"\0")[0].decode(errors="replace").strip()
    except OSError:
        return ""


def state_of(pid: int) -> str:
    """Return the state letter of a process (``T`` stopped, ``Z`` ended and not waited for); empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def children_of(pid: int) -> list[int]:
    """Return the children of a process, oldest first."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def runs(pid: int) -> bool:
    """Return whether a process is there and not stopped."""
    return state_of(pid) not in ("", "T", "Z", "X")


def has_ended(pid: int) -> bool:
    """Return whether a process has ended. One that is stopped has not."""
    return state_of(pid) in ("", "Z", "X")


def start_of(pid: int) -> int:
    """Return when a process began, in clock ticks since the machine did; 0 if it is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except OSError:
        return 0


def environment(pid: int) -> dict[str, str]:
    """Return the environment that a process was started with. Raises OSError if it has ended."""
    words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return dict(word.decode(errors="replace").split("=", 1) for word in words if b"=" in word)


def kind_of(title: str) -> str:
    """Return what a process is, by its title: ``student``, ``raylet``, ...; ``other`` if no fault befalls it."""
    actor = _ACTORS.get(title.partition(".")[0])
    return actor or _PROGRAMS.get(Path(title).name, "other")


class Processes:
    """The marked processes. ``poll`` looks again: at what actors do each time, for new processes ten times a second."""

    def __init__(self, mark: str) -> None:
        self._needle = f"{MARK}={mark}\0".encode()
        self._looks: dict[int, int] = {}
        """How often a process that is not marked was looked at."""
        self._begun: dict[int, int] = {}
        self._kinds: dict[int, str] = {}
        self._next_scan = 0.0
        self.titles: dict[int, str] = {}
        self._worked: dict[int, float] = {}
        """Students that were seen to learn, and evaluators that were seen at work, and when they last were."""

    def poll(self) -> None:
        """Look at all processes."""
        now = time.monotonic()
        if now >= self._next_scan:
            self._scan()
            self._next_scan = time.monotonic() + _SCAN_SECONDS
        for pid, before in list(self.titles.items()):
            if before and not before.startswith("ray::"):
                continue
            title = read_title(pid)
            self.titles[pid] = title or before
            if title in _WORK:
                self.note_work(kind_of(title), pid, now)

    def note_work(self, kind: str, pid: int, when: float) -> None:
        """Note the monotonic time at which a student was seen to learn, or an evaluator at work."""
        self._worked[pid] = when
        self._begun.setdefault(pid, start_of(pid))
        self._kinds[pid] = kind

    def of_kind(self, kind: str, since: int | None = None) -> list[int]:
        """Return the processes of a kind that run and are not stopped, oldest first.

        ``since``: a process; older ones than that are left out.
        """
        begun = {pid: start_of(pid) for pid, title in self.titles.items() if kind_of(title) == kind}
        earliest = 0 if since is None else start_of(since)
        return [pid for pid in sorted(begun, key=lambda p: (begun[p], p)) if begun[pid] >= earliest and runs(pid)]

    def doing(self, *calls: str) -> list[int]:
        """Return the actors that are seen in one of these calls, such as ``Student.forward``."""
        wanted = {f"ray::{call}" for call in calls}
        return [pid for pid, title in self.titles.items() if title in wanted and runs(pid)]

    def last_work(self, kind: str, since: int | None) -> float:
        """Return the monotonic time at which a student was last seen to learn, or an evaluator at work; 0 if never.

        ``since``: a process; workers that are older than that do not count.
        """
        earliest = 0 if since is None else start_of(since)
        own = (pid for pid in self._worked if self._kinds[pid] == kind and self._begun[pid] >= earliest)
        return max((self._worked[pid] for pid in own), default=0.0)

    def alive(self) -> Mapping[int, str]:
        """Return all marked processes that have not ended, stopped ones included, with their titles."""
        self._looks.clear()
        self._scan()
        return dict(self.titles)

    def _scan(self) -> None:
        there = {int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()}
        self._looks = {pid: looks for pid, looks in self._looks.items() if pid in there}
        for pid, title in list(self.titles.items()):
            if pid not in there or has_ended(pid):
                del self.titles[pid]
            elif not title.startswith("ray::"):  # a worker of Ray begins as any other Python process
                self.titles[pid] = read_title(pid)
        strangers = {pid for pid, looks in self._looks.items() if looks >= _LOOKS}
        for pid in there - strangers - self.titles.keys():
            try:
                own = self._needle in Path(f"/proc/{pid}/environ").read_bytes()
            except OSError:
                own = False
            if own and not has_ended(pid):
                self.titles[pid], self._begun[pid] = read_title(pid), start_of(pid)
            elif not own:
                self._looks[pid] = self._looks.get(pid, 0) + 1
