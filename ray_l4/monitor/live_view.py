"""Display of a run's progress: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ray_l4.monitor.progress import ProgressSnapshot

_POLL_INTERVAL = 0.5
"""Seconds between two snapshots."""
_LINE_INTERVAL = 15.0
"""Seconds between plain progress lines where there is no terminal."""


class WatchedRun(Protocol):
    """A started run, as far as the display needs it."""

    def snapshot(self) -> ProgressSnapshot:
        """Return the current progress."""

    def wait(self, seconds: float) -> bool:
        """Wait up to ``seconds``; return whether the run has ended."""


def watch(run: WatchedRun, console: Console, say: Callable[[str], None]) -> None:
    """Display the run's progress until it ends. ``say`` prints a line that stays, above the bars if there are any."""
    if console.is_terminal:
        with Live(console=console, refresh_per_second=4, transient=True) as live:
            _follow(run, say, lambda snapshot: live.update(render(snapshot)))
    else:
        _follow(run, say, _PlainLines(say).show)


def _follow(run: WatchedRun, say: Callable[[str], None], show: Callable[[ProgressSnapshot], None]) -> None:
    num_printed = 0
    ended = False
    while not ended:
        ended = run.wait(_POLL_INTERVAL)
        snapshot = run.snapshot()
        for line in snapshot.events_since(num_printed):
            say(line)
        num_printed = snapshot.events_before + len(snapshot.events)
        show(snapshot)


class _PlainLines:
    """Prints a progress line every ``_LINE_INTERVAL`` seconds."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._next = time.monotonic() + _LINE_INTERVAL

    def show(self, snapshot: ProgressSnapshot) -> None:
        if time.monotonic() >= self._next and (snapshot.num_steps or snapshot.replay_total):
            self._next = time.monotonic() + _LINE_INTERVAL
            figures = "" if snapshot.replay_total else "; " + student_figures(snapshot)
            self._say(headline(snapshot) + figures)


def headline(snapshot: ProgressSnapshot) -> str:
    """Return the position of the run (task, phase, epoch and step, or generated replay) as one line."""
    if not snapshot.num_stages:
        return snapshot.phase
    where = f"{snapshot.part}task {snapshot.stage + 1} of {snapshot.num_stages} ({snapshot.task}), {snapshot.phase}, "
    scores = f"; scores: {snapshot.jobs_done} done, {snapshot.jobs_open} open"
    if snapshot.replay_total:
        return f"{where}{snapshot.replay_done} of {snapshot.replay_total} pseudo-examples generated{scores}"
    left = snapshot.remaining_seconds
    eta = "" if left is None else f", about {format_duration(left)} of training left"
    position = f"epoch {snapshot.epoch} of {snapshot.num_epochs}, step {snapshot.step} of {snapshot.num_steps}"
    return f"{where}{position}{eta}{scores}"


def student_figures(snapshot: ProgressSnapshot) -> str:
    """Return the figures of every student as one line."""
    return ", ".join(
        f"student {index}: loss {s.loss:.3f}, peers differ by {s.disagreement:.4f}, "
        f"{s.tokens_per_second:.0f} tokens/s, waits {100 * s.wait_fraction:.0f} %"
        for index, s in enumerate(snapshot.students)
    )


def render(snapshot: ProgressSnapshot) -> RenderableType:
    """Return the terminal display: the headline and one bar for each student."""
    table = Table.grid(padding=(0, 2))
    for index, student in enumerate(snapshot.students):
        table.add_row(
            f"student {index}",
            ProgressBar(total=max(snapshot.num_steps, 1), completed=snapshot.step, width=30),
            f"loss {student.loss:.3f}",
            f"peers differ by {student.disagreement:.4f}",
            f"{student.tokens_per_second:,.0f} tokens/s",
            f"waits {100 * student.wait_fraction:.0f} %",
        )
    return Group(Text(headline(snapshot)), table)


def format_duration(seconds: float) -> str:
    """Return a duration in hours, minutes and seconds (``1 min 05 s``)."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
