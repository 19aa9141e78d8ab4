"""The timeline of a run, across its resumes."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_l4.monitor.timeline import Timeline
from ray_l4.store.run_directory import RunDirectory
from tests.run import run_fixtures as small


def spans(run: RunDirectory) -> list[dict[str, object]]:
    return pq.read_table(run.path / "timeline.parquet").to_pylist()


@given(st.floats(0, 1e6))
def test_a_span_has_its_length_and_ends_now(tmp_path_factory: pytest.TempPathFactory, seconds: float) -> None:
    run = RunDirectory(tmp_path_factory.mktemp("run"))
    timeline = Timeline(run)
    before = time.time()
    timeline.add("student 0", "training", "a, epoch 1", seconds)
    timeline.save()
    ((span,), after) = (spans(run), time.time())
    assert (span["lane"], span["kind"], span["label"]) == ("student 0", "training", "a, epoch 1")
    assert before <= span["end"] <= after
    assert span["end"] - span["start"] == pytest.approx(seconds, abs=1e-3)


def test_a_span_is_added_even_if_its_block_raises(tmp_path: Path) -> None:
    timeline = Timeline(RunDirectory(tmp_path))
    with pytest.raises(KeyboardInterrupt), timeline.span("coordinator", "replay", "examples"):
        time.sleep(0.02)
        raise KeyboardInterrupt
    timeline.save()
    (span,) = spans(RunDirectory(tmp_path))
    assert 0.02 <= span["end"] - span["start"] < 5


def test_a_resumed_run_keeps_earlier_spans(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    for label in ("first", "second"):
        timeline = Timeline(run)
        timeline.add("evaluator 0", "scoring", label, 1.0)
        timeline.save()
    assert [span["label"] for span in spans(run)] == ["first", "second"]


@pytest.mark.parametrize("method", ["l4", "l2kd-seq", "ewc", "single-qa"])
def test_a_run_records_its_kinds_of_work(method: str, finished: Callable[[str], small.Finished]) -> None:
    run, summary = finished(method)
    found = spans(run)
    kinds = {(str(span["lane"]).split()[0], span["kind"]) for span in found}
    expected = {("student", "training"), ("evaluator", "scoring"), ("coordinator", "replay")}
    expected |= {
        "l4": {("evaluator", "replay")},
        "l2kd-seq": {("evaluator", "replay"), ("evaluator", "distil"), ("coordinator", "teachers")},
        "ewc": {("coordinator", "importance")},
        "single-qa": set(),
    }[method]
    assert kinds == expected
    assert all(span["start"] <= span["end"] for span in found)
    began, ended = min(span["start"] for span in found), max(span["end"] for span in found)
    assert ended - began <= summary["wall_seconds"] + 1.0
    training = [(span["lane"], span["label"]) for span in found if span["kind"] == "training"]
    lanes = [f"student {student}" for student in range(summary["peers"])]
    assert sorted(training) == sorted(
        (lane, f"{stage}, epoch {epoch}") for lane in lanes for stage in summary["stages"] for epoch in (1, 2, 3)
    )
