"""The live progress of a run, and its display."""

from __future__ import annotations

import io
import re
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from ray_l4.monitor import live_view
from ray_l4.monitor.live_view import format_duration, headline, render, student_figures
from ray_l4.monitor.progress import Progress, ProgressSnapshot, StudentProgress


def figures(loss: float = 2.0, kd: float = 0.1, tokens: float = 60.0, seconds: float = 1.0) -> dict[str, float]:
    """Return the figures of one step: half the time forward and backward, a quarter waiting, a quarter idle."""
    shares = {"forward_seconds": 0.2, "wait_seconds": 0.25, "backward_seconds": 0.3, "idle_seconds": 0.25}
    return {"loss": loss, "kd_qa": kd, "tokens": tokens} | {name: x * seconds for name, x in shares.items()}


def test_the_first_step_is_not_smoothed() -> None:
    student = StudentProgress()
    student.update(figures(seconds=0.5))
    assert (student.loss, student.disagreement) == (2.0, 0.1)
    assert student.tokens_per_second == pytest.approx(120.0)
    assert student.wait_fraction == pytest.approx(0.25)


def test_later_steps_are_smoothed() -> None:
    student = StudentProgress()
    student.update(figures(loss=2.0))
    student.update(figures(loss=1.0))
    assert student.loss == pytest.approx(0.9 * 2.0 + 0.1 * 1.0)
    for _ in range(100):
        student.update(figures(loss=1.0, tokens=30))
    assert student.loss == pytest.approx(1.0, abs=1e-3)
    assert student.tokens_per_second == pytest.approx(30.0, abs=1e-2)


@given(st.lists(st.floats(0, 10), min_size=1, max_size=20))
def test_smoothed_figures_stay_within_the_range_of_the_input(losses: list[float]) -> None:
    student = StudentProgress()
    for loss in losses:
        student.update(figures(loss=loss))
    assert min(losses) - 1e-9 <= student.loss <= max(losses) + 1e-9


def test_a_step_without_duration_has_no_rates() -> None:
    student = StudentProgress()
    student.update(figures(seconds=0.0))
    assert (student.tokens_per_second, student.wait_fraction) == (0.0, 0.0)


def test_steps_are_counted_in_the_stage_and_in_the_run() -> None:
    progress = Progress()
    progress.update(students=[StudentProgress(), StudentProgress()], num_steps=2, steps_total=4)
    for stage in range(2):
        progress.update(stage=stage, step=0)
        for step in range(2):
            progress.record_step(step, {0: figures(loss=1.0), 1: figures(loss=3.0)}, seconds=0.5)
    now = progress.snapshot()
    assert (now.stage, now.step, now.steps_done, now.training_seconds) == (1, 2, 4, 2.0)
    assert [student.loss for student in now.students] == [pytest.approx(1.0), pytest.approx(3.0)]


def test_figures_of_an_unknown_student_are_an_error() -> None:
    progress = Progress()
    progress.update(students=[StudentProgress()])
    with pytest.raises(IndexError):
        progress.record_step(0, {0: figures(), 1: figures()}, seconds=0.1)


def test_a_step_changes_only_the_students_that_learned_in_it() -> None:
    """As when students learn in turn."""
    progress = Progress()
    progress.update(students=[StudentProgress(loss=7.0), StudentProgress()])
    progress.record_step(0, {1: figures(loss=3.0)}, seconds=0.5)
    now = progress.snapshot()
    assert [student.loss for student in now.students] == [7.0, pytest.approx(3.0)]
    assert (now.steps_done, now.training_seconds) == (1, 0.5)


def test_the_remaining_time_follows_from_the_steps_done() -> None:
    assert ProgressSnapshot(steps_total=10).remaining_seconds is None
    assert ProgressSnapshot(steps_done=4, steps_total=10, training_seconds=8.0).remaining_seconds == pytest.approx(12.0)
    assert ProgressSnapshot(steps_done=10, steps_total=10, training_seconds=8.0).remaining_seconds == 0.0
    assert ProgressSnapshot(steps_done=12, steps_total=10, training_seconds=8.0).remaining_seconds == 0.0, (
        "never negative"
    )


def test_a_snapshot_is_a_copy() -> None:
    progress = Progress()
    progress.update(students=[StudentProgress()], phase="training")
    seen = progress.snapshot()
    seen.students[0].loss = 99.0
    seen.events.append("not there")
    seen.phase = "other"
    again = progress.snapshot()
    assert (again.students[0].loss, again.events, again.phase) == (0.0, [], "training")


def test_a_snapshot_does_not_change_later() -> None:
    progress = Progress()
    progress.update(students=[StudentProgress()])
    before = progress.snapshot()
    progress.record_step(0, {0: figures()}, seconds=1.0)
    progress.add_event("learning")
    assert (before.steps_done, before.students[0].loss, before.events) == (0, 0.0, [])


def test_events_keep_their_order_and_have_a_time() -> None:
    progress = Progress()
    for line in ("one", "two"):
        progress.add_event(line)
    assert [re.fullmatch(r"\d\d:\d\d:\d\d (\w+)", event)[1] for event in progress.snapshot().events] == ["one", "two"]


def test_one_thread_writes_while_another_takes_snapshots() -> None:
    """The figures of a step are visible together or not at all."""
    progress = Progress()
    progress.update(students=[StudentProgress() for _ in range(2)])
    torn: list[ProgressSnapshot] = []
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            now = progress.snapshot()
            if now.step != now.steps_done or now.students[0].loss != now.students[1].loss:
                torn.append(now)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        for step in range(400):
            progress.record_step(step, {student: figures(loss=step % 7) for student in range(2)}, seconds=0.0)
    finally:
        done.set()
        watcher.join()
    assert torn == []


# --- the display


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (61, "1 min 01 s"),
        (3600, "1 h 00 min"),
        (7322, "2 h 02 min"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def running() -> ProgressSnapshot:
    student = StudentProgress(loss=1.234, disagreement=0.05678, tokens_per_second=12345.6, wait_fraction=0.071)
    return ProgressSnapshot(
        phase="training",
        stage=1,
        num_stages=3,
        task="mini.sql",
        epoch=2,
        num_epochs=9,
        step=30,
        num_steps=90,
        steps_done=130,
        steps_total=260,
        training_seconds=65.0,
        students=[student, StudentProgress()],
        jobs_open=2,
        jobs_done=6,
    )


def test_the_headline() -> None:
    assert headline(running()) == (
        "task 2 of 3 (mini.sql), training, epoch 2 of 9, step 30 of 90, about 1 min 05 s of training left; "
        "scores: 6 done, 2 open"
    )
    assert "left" not in headline(ProgressSnapshot()), "before the first step there is no estimate"


def generating() -> ProgressSnapshot:
    """Before the steps of a stage are known."""
    return ProgressSnapshot(
        phase="replay", stage=1, num_stages=3, task="mini.sql", replay_done=64, replay_total=480, jobs_done=6
    )


def test_the_headline_while_replay_is_generated() -> None:
    assert headline(generating()) == (
        "task 2 of 3 (mini.sql), replay, 64 of 480 pseudo-examples generated; scores: 6 done, 0 open"
    )


def test_lines_appear_without_a_terminal_while_replay_is_generated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_view, "_LINE_INTERVAL", 0.0)
    said: list[str] = []

    class Run:
        polls = 0

        def snapshot(self) -> ProgressSnapshot:
            return generating()

        def wait(self, seconds: float) -> bool:
            self.polls += 1
            return self.polls > 2

    live_view.watch(Run(), Console(file=io.StringIO()), said.append)
    assert said == [headline(generating())] * 3


def test_the_figures_of_every_student_on_one_line() -> None:
    assert student_figures(running()) == (
        "student 0: loss 1.234, peers differ by 0.0568, 12346 tokens/s, waits 7 %, "
        "student 1: loss 0.000, peers differ by 0.0000, 0 tokens/s, waits 0 %"
    )


@pytest.mark.parametrize(
    "snapshot", [running(), ProgressSnapshot(students=[StudentProgress()])], ids=["running", "starting"]
)
def test_the_live_view_has_a_bar_for_every_student(snapshot: ProgressSnapshot) -> None:
    console = Console(file=io.StringIO(), width=160, color_system=None)
    console.print(render(snapshot))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert lines[0].startswith(headline(snapshot)[:60])
    bars = [line for line in lines if line.startswith("student ")]
    assert [line.split()[1] for line in bars] == [str(index) for index in range(len(snapshot.students))]
    done = 30 * snapshot.step // max(snapshot.num_steps, 1)
    assert [line.count("━") for line in bars] == [done] * len(bars), "a bar is 30 characters wide"


def test_a_snapshot_does_not_grow_with_the_run_and_its_reader_misses_no_message() -> None:
    progress, read = Progress(), []
    for number in range(5000):
        progress.add_event(f"message {number}")
        if number % 400 == 0 or number == 4999:
            snapshot = progress.snapshot()
            assert len(snapshot.events) <= 1000
            read += [event.split(" ", 1)[1] for event in snapshot.events_since(len(read))]
    assert read == [f"message {number}" for number in range(5000)]
