"""Display of a running sweep: the running trials on a terminal; elsewhere a line for each trial that ends."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ray_l4.monitor.live_view import format_duration
from ray_l4.sweep.directory import SweepDirectory
from ray_l4.sweep.run_trial import last_line
from ray_l4.sweep.trials import Trial

_REFRESH = 2
"""Updates of the display per second."""


class SweepView:
    """Counts trials as they start and end, and displays them."""

    def __init__(
        self, pending: Mapping[str, Trial], done_before: int, directory: SweepDirectory, console: Console
    ) -> None:
        """``pending``: the trials to run, by name; ``done_before``: number of trials that earlier calls finished."""
        self._pending = pending
        self._done = self._done_before = done_before
        self._failed = 0
        self._directory = directory
        self._console = console
        self._began = self._last_end = time.monotonic()
        self._running: dict[str, float] = {}

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Display the trials inside the ``with`` block if there is a terminal."""
        if not self._console.is_terminal:
            yield
            return
        with Live(get_renderable=self.render, console=self._console, refresh_per_second=_REFRESH, transient=True):
            yield

    def trial_started(self, name: str) -> None:
        """Record the start of a trial."""
        self._running[name] = time.monotonic()

    def trial_ended(self, name: str, *, failed: bool) -> None:
        """Record the end of a trial and print a line about it."""
        self._last_end = time.monotonic()
        seconds = self._last_end - self._running.pop(name, self._last_end)
        self._failed += failed
        self._done += not failed
        outcome = f"failed, see {self._directory.log_path(self._pending[name])}" if failed else "done"
        line = f"{name}: {outcome} after {format_duration(seconds)} ({self.headline()})"
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def headline(self) -> str:
        """Return the number of trials in each state, and the time left, as one line."""
        counts = f"{self._done} done, {len(self._running)} running, {self._num_waiting} waiting, {self._failed} failed"
        left = self.remaining_seconds
        return counts + ("" if left is None else f", about {format_duration(left)} left")

    @property
    def remaining_seconds(self) -> float | None:
        """Estimated time until all trials have ended, from the rate at which they end; None before the first end."""
        ended = self._done - self._done_before + self._failed
        if not ended:
            return None
        left_at_last_end = (self._last_end - self._began) / ended * (len(self._pending) - ended)
        return max(left_at_last_end - (time.monotonic() - self._last_end), 0.0)

    @property
    def _num_waiting(self) -> int:
        return len(self._pending) - (self._done - self._done_before) - self._failed - len(self._running)

    def render(self) -> RenderableType:
        """Return a bar over all trials, and a line with the current activity of each running one."""
        total = self._done_before + len(self._pending)
        bar = Table.grid(padding=(0, 2))
        bar.add_row(ProgressBar(total=total, completed=self._done + self._failed, width=30), self.headline())
        running = Table.grid(padding=(0, 2))
        for name, began in list(self._running.items()):
            activity = last_line(self._directory.log_path(self._pending[name])).partition(";")[0]
            elapsed = format_duration(time.monotonic() - began)
            running.add_row(name, elapsed, Text(activity, overflow="ellipsis", no_wrap=True))
        return Group(Text(f"{format_duration(time.monotonic() - self._began)} elapsed"), bar, running)
