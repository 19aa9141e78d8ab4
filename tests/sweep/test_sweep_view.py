"""The display of a running sweep."""

from __future__ import annotations

import io
import tracemalloc
from pathlib import Path

import pytest
from rich.console import Console

from ray_l4.sweep import view as view_module
from ray_l4.sweep.directory import SweepDirectory
from ray_l4.sweep.run_trial import last_line
from ray_l4.sweep.trials import Trial
from ray_l4.sweep.view import SweepView
from tests.run.run_fixtures import experiment

NAMES = ["a_s0", "b_s0", "c_s0", "d_s0"]


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock that the test advances."""
    clock = Clock()
    monkeypatch.setattr(view_module, "time", clock)
    return clock


def sweep_view(folder: Path, *, terminal: bool = False) -> tuple[SweepView, io.StringIO]:
    """Return a view of four pending trials after two finished ones, and its output."""
    output = io.StringIO()
    console = Console(file=output, width=100, force_terminal=terminal, color_system=None)
    pending = {name: Trial(name, experiment(), {}) for name in NAMES}
    return SweepView(pending, 2, SweepDirectory(folder), console), output


def test_counts_and_remaining_time(tmp_path: Path, clock: Clock) -> None:
    view, _ = sweep_view(tmp_path)
    assert view.headline() == "2 done, 0 running, 4 waiting, 0 failed"
    view.trial_started("a_s0")
    view.trial_started("b_s0")
    clock.now += 30
    view.trial_ended("a_s0", failed=False)
    assert view.headline() == "3 done, 1 running, 2 waiting, 0 failed, about 1 min 30 s left"
    clock.now += 30
    view.trial_ended("b_s0", failed=True)
    assert view.headline() == "3 done, 0 running, 2 waiting, 1 failed, about 1 min 00 s left"
    clock.now += 15
    assert view.remaining_seconds == pytest.approx(45), "the estimate falls as time passes"
    clock.now += 1000
    assert view.remaining_seconds == 0


def test_without_a_terminal_there_is_one_line_for_each_end(tmp_path: Path, clock: Clock) -> None:
    view, output = sweep_view(tmp_path)
    with view.shown():
        view.trial_started("a_s0")
        clock.now += 5
        view.trial_ended("a_s0", failed=False)
        view.trial_started("b_s0")
        view.trial_ended("b_s0", failed=True)
    lines = output.getvalue().splitlines()
    assert lines[0] == "a_s0: done after 5 s (3 done, 0 running, 3 waiting, 0 failed, about 15 s left)"
    assert lines[1].startswith(f"b_s0: failed, see {tmp_path / 'logs' / 'b_s0.log'} after 0 s (3 done")
    assert len(lines) == 2


def test_a_terminal_shows_the_activity_of_each_running_trial(tmp_path: Path, clock: Clock) -> None:
    view, output = sweep_view(tmp_path, terminal=True)
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "a_s0.log").write_text("begins\ntask 1 of 2 (x), training, step 3 of 9; scores: 0 done\n\n")
    view.trial_started("a_s0")
    view.trial_started("b_s0")  # has no output yet
    clock.now += 65
    with view.shown():
        pass
    shown = output.getvalue()
    assert "a_s0  1 min 05 s  task 1 of 2 (x), training, step 3 of 9" in shown
    assert "scores" not in shown
    assert "b_s0  1 min 05 s" in shown
    assert "2 running, 2 waiting" in shown


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("", ""),
        ("\n\n", ""),
        ("one", "one"),
        ("one\ntwo", "two"),
        ("one\ntwo\n \n\n", "two"),
        ("x" * 10_000 + "\nlast\n", "last"),
        ("ä" * 5_000 + "\nzuletzt, ä\n", "zuletzt, ä"),
    ],
)
def test_the_last_line_of_a_log(tmp_path: Path, content: str, line: str) -> None:
    log = tmp_path / "a.log"
    assert last_line(log) == "", "no log yet"
    log.write_text(content, encoding="utf-8")
    assert last_line(log) == line


def test_the_last_line_of_a_long_log_is_read_from_its_end(tmp_path: Path) -> None:
    """It is read twice a second for every running trial."""
    log = tmp_path / "a.log"
    log.write_text("a line like any other\n" * 200_000 + "the end\n")
    tracemalloc.start()
    try:
        assert last_line(log) == "the end"
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < log.stat().st_size / 20
    log.write_text("x" * 100_000)
    assert len(last_line(log)) <= 4096, "the end of a very long line"
