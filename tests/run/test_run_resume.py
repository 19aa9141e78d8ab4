"""A run that ended early goes on as if it had not."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from ray_l4.run.coordinator import StoppedError
from ray_l4.run.session import start
from ray_l4.store.run_directory import RunDirectory
from tests.run import run_fixtures as small


def test_a_run_stopped_after_its_first_task_ends_like_an_undisturbed_one(tmp_path: Path) -> None:
    profile = small.cluster("in_process")
    undisturbed, expected = small.complete_run(small.experiment(), profile, tmp_path / "undisturbed")
    setup, run = small.new_run(small.experiment(), profile, tmp_path / "stopped")
    session = start(setup, profile, run)
    while run.state().stages_done == 0:
        assert not session.wait(0.005), "the run ended before it could be stopped"
    session.close()
    with pytest.raises(StoppedError, match="ray-l4 resume"):
        session.result()
    assert not (run.path / "summary.json").exists()

    found = small.finish(start(setup, profile, run))

    assert small.weights(run) == small.weights(undisturbed)
    assert small.scores(run) == small.scores(undisturbed)
    assert found["score_matrix"] == expected["score_matrix"]
    assert found["replay"] == expected["replay"]
    assert len(run.step_figures()) == len(undisturbed.step_figures())


def test_scores_that_were_not_taken_before_the_end_are_taken_on_resume(tmp_path: Path) -> None:
    """Every epoch is scored, and all of it is lost: the checkpoints are enough to bring it back."""
    profile = small.cluster("in_process")
    config = small.experiment(evaluation={"when": "epoch", "max_new_tokens": 8})
    run, expected = small.complete_run(config, profile, tmp_path / "run")
    before = small.scores(run)
    assert len(before) == 2 * 2 * 2 * 2, "stages x epochs x students x tasks"
    shutil.rmtree(run.path / "scores")
    (run.path / "summary.json").unlink()
    setup, _ = small.new_run(config, profile, tmp_path / "other")
    found = small.finish(start(setup, profile, RunDirectory.open(run.path)))
    assert small.scores(run) == before
    assert found["score_matrix"] == expected["score_matrix"]


def test_a_long_name_in_any_script_names_all_files_and_is_found_again(tmp_path: Path) -> None:
    """Two tasks that begin alike, a method that writes a file of answers for each, and scores that are lost."""
    names = ["状態の変化を答える課題" * 8 + end for end in ("一", "二")]
    rows = "".join(f'{{"context": "c{n}", "question": "q", "answer": "a{n}"}}\n' for n in range(8))
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text(rows, encoding="utf-8")
    stream = [{"name": name, "path": str(tmp_path), "metric": "em"} for name in names]
    profile, config = small.cluster("in_process"), small.quick("l2kd-seq", stream=stream, training={"epochs": 1})
    run, expected = small.complete_run(config, profile, tmp_path / "run")
    before = small.scores(run)
    assert {cell.task for cell in run.scores()} == set(names) and len(before) == 4
    next((run.path / "scores").iterdir()).unlink()
    (run.path / "summary.json").unlink()
    setup, _ = small.new_run(config, profile, tmp_path / "other")
    found = small.finish(start(setup, profile, RunDirectory.open(run.path)))
    assert small.scores(run) == before
    assert found["score_matrix"] == expected["score_matrix"]


def test_time_is_added_up_over_pauses(tmp_path: Path) -> None:
    profile = small.cluster("in_process")
    run, summary = small.complete_run(small.experiment(), profile, tmp_path / "run")
    state = run.state()
    run.save_state(state.model_copy(update={"wall_seconds": 1000.0}))
    setup, _ = small.new_run(small.experiment(), profile, tmp_path / "other")
    time.sleep(0.1)
    resumed = small.finish(start(setup, profile, run))
    assert 1000.0 < resumed["wall_seconds"] < 1000.0 + 60.0 + summary["wall_seconds"]


slow = pytest.mark.slow


@pytest.mark.parametrize(
    ("method", "line", "occurrence"),
    [
        pytest.param("l2kd-seq", "learning mini.woz", 1, marks=slow),  # by the teachers
        pytest.param("l2kd-seq", "the teachers are trained", 1, marks=slow),
        ("l2kd-seq", "learning mini.woz", 2),  # by the student
        pytest.param("l2kd-word", "learning mini.woz", 1, marks=slow),  # by the student: its teachers learned together
        ("ewc", "learning mini.woz", 1),
        pytest.param("lwf", "learning mini.woz", 1, marks=slow),
        pytest.param("agem", "learning mini.woz", 1, marks=slow),
        pytest.param("er", "learning mini.woz", 1, marks=slow),
        ("derpp", "learning mini.woz", 1),
        ("l4-released", "learning mini.woz", 1),
        ("single-qa-lm", "learning mini.woz", 1),
    ],
)
def test_every_method_goes_on_as_if_it_had_not_been_stopped(
    tmp_path: Path, finished: Callable[[str], small.Finished], method: str, line: str, occurrence: int
) -> None:
    setup, run = small.stopped_run(small.quick(method), tmp_path / "run", line, occurrence)
    answers = {path: path.stat().st_mtime_ns for path in (run.path / "distil").glob("*.parquet")}
    teachers_done = (run.teachers() / "summary.json").is_file()

    found = small.finish(start(setup, small.cluster("in_process"), run))

    undisturbed, expected = finished(method)
    small.assert_equal(run, undisturbed)
    for key in ("score_matrix", "final", "average_accuracy", "forgetting", "replay", "stages"):
        assert found[key] == expected[key]
    assert len(run.step_figures()) == len(undisturbed.step_figures())
    assert guards(run) == guards(undisturbed)
    assert all(path.stat().st_mtime_ns == time for path, time in answers.items()), "no answer is decoded again"
    spans = pq.read_table(run.path / "timeline.parquet").to_pylist()
    if teachers_done:
        assert [span["kind"] for span in spans].count("teachers") == 1, "teachers are not trained again"
    trained = {span["label"] for span in spans if span["kind"] == "training"}
    assert trained == {f"{stage}, epoch {epoch}" for stage in found["stages"] for epoch in (1, 2, 3)}, (
        "before and after"
    )


def guards(run: RunDirectory) -> dict[str, bytes]:
    """What the students' guards knew after every stage."""
    return {path.name: path.read_bytes() for path in (run.path / "guards").glob("*.safetensors")}


def test_a_stop_while_teachers_are_trained_names_the_run_that_the_user_knows(tmp_path: Path) -> None:
    """``stopped_run`` checks the message; here that the time until then is not forgotten either."""
    _, run = small.stopped_run(small.quick("l2kd-seq"), tmp_path / "run", "learning mini.woz")
    spans = pq.read_table(run.path / "timeline.parquet").to_pylist()
    assert [(span["lane"], span["kind"]) for span in spans] == [("coordinator", "teachers")]
    assert RunDirectory.open(run.teachers()).state().stages_done == 1
