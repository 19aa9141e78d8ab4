"""What one sees while a run goes: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ray_l4.monitor.progress import Snapshot

_LOOK_EVERY = 0.5
_LINE_EVERY = 15.0
"""Seconds between plain progress lines where there is no terminal."""


class WatchedRun(Protocol):
    """What the live view needs of a run that has been started."""

    def look(self) -> Snapshot:
        """What the run is doing now."""

    def wait(self, seconds: float) -> bool:
        """Wait up to ``seconds``; returns whether the run has ended."""


def watch(run: WatchedRun, console: Console) -> None:
    """Show the run's progress until it ends."""
    if console.is_terminal:
        with Live(console=console, refresh_per_second=4, transient=True) as live:
            _follow(run, console, lambda snapshot: live.update(render(snapshot)))
    else:
        lines = _PlainLines(console)
        _follow(run, console, lines.show)


def _follow(run: WatchedRun, console: Console, show: Callable[[Snapshot], None]) -> None:
    seen = 0
    ended = False
    while not ended:
        ended = run.wait(_LOOK_EVERY)
        snapshot = run.look()
        for line in snapshot.events[seen:]:
            console.print(line, highlight=False, markup=False, soft_wrap=True)
        seen = len(snapshot.events)
        show(snapshot)


class _PlainLines:
    """A line now and then."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._next = time.monotonic() + _LINE_EVERY

    def show(self, snapshot: Snapshot) -> None:
        if time.monotonic() >= self._next and snapshot.num_steps:
            self._next = time.monotonic() + _LINE_EVERY
            self._console.print(headline(snapshot) + "; " + students(snapshot), highlight=False, soft_wrap=True)


def headline(snapshot: Snapshot) -> str:
    """Where the run is, in one line."""
    if not snapshot.num_stages:
        return snapshot.phase
    left = snapshot.remaining_seconds
    eta = "" if left is None else f", about {duration(left)} of training left"
    return (
        f"{snapshot.part}task {snapshot.stage + 1} of {snapshot.num_stages} ({snapshot.task}), {snapshot.phase}, "
        f"epoch {snapshot.epoch} of {snapshot.num_epochs}, step {snapshot.step} of {snapshot.num_steps}{eta}; "
        f"scores: {snapshot.jobs_done} done, {snapshot.jobs_open} open"
    )


def students(snapshot: Snapshot) -> str:
    """Every student's figures, in one line."""
    return ", ".join(
        f"student {index}: loss {s.loss:.3f}, peers differ by {s.disagreement:.4f}, "
        f"{s.tokens_per_second:.0f} tokens/s, waits {100 * s.wait_fraction:.0f} %"
        for index, s in enumerate(snapshot.students)
    )


def render(snapshot: Snapshot) -> RenderableType:
    """The live view: one bar for each student."""
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


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
