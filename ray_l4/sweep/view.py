"""What one sees of a sweep while it goes: the running trials on a terminal, a line for each that ends elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ray_l4.monitor.live_view import duration
from ray_l4.sweep.folder import SweepFolder
from ray_l4.sweep.run_trial import last_line
from ray_l4.sweep.trials import Trial

_REFRESH = 2


class SweepView:
    """Counts trials as they start and end, and shows them."""

    def __init__(self, pending: Mapping[str, Trial], done_before: int, folder: SweepFolder, console: Console) -> None:
        """``pending``: the trials to come, by their folders; ``done_before``: how many were finished earlier."""
        self._pending = pending
        self._done = self._done_before = done_before
        self._failed = 0
        self._folder = folder
        self._console = console
        self._began = self._last_end = time.monotonic()
        self._running: dict[str, float] = {}

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show the trials as long as this lasts, if there is a terminal."""
        if not self._console.is_terminal:
            yield
            return
        with Live(get_renderable=self.render, console=self._console, refresh_per_second=_REFRESH, transient=True):
            yield

    def started(self, name: str) -> None:
        """A trial has begun."""
        self._running[name] = time.monotonic()

    def ended(self, name: str, *, failed: bool) -> None:
        """A trial has ended; say so."""
        self._last_end = time.monotonic()
        seconds = self._last_end - self._running.pop(name, self._last_end)
        self._failed += failed
        self._done += not failed
        what = f"failed, see {self._folder.log(self._pending[name])}" if failed else "done"
        line = f"{name}: {what} after {duration(seconds)} ({self.headline()})"
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def headline(self) -> str:
        """All trials in one line."""
        waiting = self._num_waiting
        counts = f"{self._done} done, {len(self._running)} running, {waiting} waiting, {self._failed} failed"
        left = self.remaining_seconds
        return counts + ("" if left is None else f", about {duration(left)} left")

    @property
    def remaining_seconds(self) -> float | None:
        """Time until all have ended, if the others take as long as those that ended so far; None before the first."""
        ended = self._done - self._done_before + self._failed
        if not ended:
            return None
        left_then = (self._last_end - self._began) / ended * (len(self._pending) - ended)
        return max(left_then - (time.monotonic() - self._last_end), 0.0)

    @property
    def _num_waiting(self) -> int:
        return len(self._pending) - (self._done - self._done_before) - self._failed - len(self._running)

    def render(self) -> RenderableType:
        """A bar over all trials, and what each running one does."""
        total = self._done_before + len(self._pending)
        bar = Table.grid(padding=(0, 2))
        bar.add_row(ProgressBar(total=total, completed=self._done + self._failed, width=30), self.headline())
        running = Table.grid(padding=(0, 2))
        for name, began in list(self._running.items()):
            phase = last_line(self._folder.log(self._pending[name])).partition(";")[0]
            running.add_row(name, duration(time.monotonic() - began), Text(phase, overflow="ellipsis", no_wrap=True))
        return Group(Text(f"{duration(time.monotonic() - self._began)} so far"), bar, running)
