"""The gate: which finished stages are served."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_l4.config.cluster import ClusterConfig
from ray_l4.config.experiment import ExperimentConfig
from ray_l4.live.gate import Row, judge, judge_finished
from ray_l4.methods import Stage
from ray_l4.store.promotion import decide, decisions, served_stage
from ray_l4.store.records import write_score
from ray_l4.store.run_directory import Cell, RunDirectory, RunState

NEW = Stage("c", ("c",), ("c",), ("a", "b", "c"))
Scores = tuple[float | None, float | None, float | None]
AGAIN = Stage("a (2)", ("a (2)",), ("a",), ("a", "b"))


@pytest.mark.parametrize(
    ("before", "after", "promoted", "why"),
    [
        ((90.0, 80.0, 0.0), (88.0, 80.0, 50.0), True, "c from 0.0 to 50.0; the largest fall"),
        ((90.0, 80.0, 0.0), (85.0, 75.0, 50.0), True, "the largest fall is that of a"),
        ((90.0, 80.0, 0.0), (84.9, 80.0, 99.0), False, "a fell from 90.0 to 84.9, more than 5 points"),
        ((90.0, 80.0, 0.0), (90.0, 10.0, 99.0), False, "b fell from 80.0 to 10.0"),
        ((90.0, 80.0, 7.0), (90.0, 80.0, 7.0), False, "c, which it learned, did not rise"),
        ((90.0, 80.0, None), (90.0, 80.0, 0.0), False, "c, which it learned, did not rise (from – to 0.0)"),
        ((90.0, 80.0, None), (90.0, 80.0, 1.0), True, "c from – to 1.0"),
        ((90.0, 80.0, None), (90.0, 80.0, None), False, "c has not been scored"),
    ],
)
def test_a_new_task_has_to_rise_and_earlier_ones_may_fall_a_little(
    before: Scores, after: Scores, promoted: bool, why: str
) -> None:
    rows = [dict(zip("abc", scores, strict=True)) for scores in (before, after)]
    verdict = judge(*rows, NEW, ("a", "b"), 5.0)
    assert verdict.promoted is promoted and why in verdict.why


@pytest.mark.parametrize(
    ("after", "promoted", "why"),
    [
        ({"a": 100.0, "b": 80.0}, True, "a from 100.0 to 100.0"),
        ({"a": 99.0, "b": 80.0}, False, "a, which it learned again, fell from 100.0 to 99.0"),
        ({"a": 100.0, "b": 74.0}, False, "b fell from 80.0 to 74.0"),
    ],
)
def test_a_task_that_came_back_must_not_fall(after: Row, promoted: bool, why: str) -> None:
    verdict = judge({"a": 100.0, "b": 80.0}, after, AGAIN, ("a", "b"), 5.0)
    assert verdict.promoted is promoted and why in verdict.why


SCORES = st.fixed_dictionaries({task: st.floats(0, 100) for task in ("a", "b", "c")})


@given(SCORES, SCORES, st.floats(0, 100))
def test_what_is_promoted_forgets_no_more_than_is_allowed(
    before: dict[str, float], after: dict[str, float], most: float
) -> None:
    verdict = judge(before, after, NEW, ("a", "b"), most)
    forgets = max(before[task] - after[task] for task in ("a", "b"))
    assert verdict.promoted == (forgets <= most and after["c"] > before["c"])


EXPERIMENT = ExperimentConfig.model_validate(
    {
        "method": "lamol",
        "stream": ["mini.woz", "mini.sql", "mini.rest"],
        "model": {"name": "gpt2"},
        "training": {"epochs": 1},
    }
)


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(tmp_path / "run", EXPERIMENT, ClusterConfig(), {})


def finish(run: RunDirectory, scores: list[float | None]) -> None:
    """Finish the next stage, with its scores."""
    stage = run.state().stages_done
    folder = run.checkpoint(stage, 1, 0)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    for task, score in zip(EXPERIMENT.tasks, scores, strict=True):
        if score is not None:
            add_score(run, stage, task, score)
    run.save_state(RunState(stages_done=stage + 1))


def add_score(run: RunDirectory, stage: int, task: str, score: float, student: int = 0) -> None:
    record = {"task": task, "headline": "em", "values": {"em": score}, "examples": 1}
    write_score(
        run, Cell(stage, 1, student, task), record, {"sample_id": ["x"], "prediction": ["y"], "references": [["y"]]}
    )


def judged(run: RunDirectory) -> list[tuple[int, bool]]:
    return [(own.stage, own.promoted) for own in judge_finished(run, 5.0)]


def test_stages_are_judged_once_they_are_scored_each_against_what_is_served(run: RunDirectory) -> None:
    assert judged(run) == []
    finish(run, [90.0, 0.0, 0.0])
    assert judged(run) == [(0, True)], "there was nothing before"
    finish(run, [50.0, None, 0.0])
    assert judged(run) == [], "a score of a task that it has learned is missing"
    add_score(run, 1, "mini.sql", 80.0)
    assert judged(run) == [(1, False)]
    assert "mini.woz fell from 90.0 to 50.0" in decisions(run)[-1].why
    assert served_stage(run) == 0
    finish(run, [88.0, 70.0, 60.0])
    assert judged(run) == [(2, True)], "it is compared with stage 0, which is served"
    assert judged(run) == [] and served_stage(run) == 2


def test_a_stage_is_judged_by_its_best_student_once_all_have_been_scored(run: RunDirectory) -> None:
    finish(run, [90.0, 0.0, 0.0])
    assert judged(run) == [(0, True)]
    other = run.checkpoint(1, 1, 1)
    other.mkdir(parents=True)
    (other / "config.json").write_text("{}")
    finish(run, [50.0, 80.0, 0.0])
    assert judged(run) == [], "the other student may be better"
    for task, score in (("mini.woz", 88.0), ("mini.sql", 81.0)):
        add_score(run, 1, task, score, student=1)
    assert judged(run) == [(1, True)]


def test_what_was_learned_before_the_service_began_is_served_as_it_is(run: RunDirectory) -> None:
    finish(run, [90.0, 0.0, 0.0])
    finish(run, [10.0, 80.0, 0.0])
    assert judged(run) == [(1, True)]
    assert served_stage(run) == 1


def test_a_stage_that_a_person_chose_is_not_judged_again(run: RunDirectory) -> None:
    finish(run, [90.0, 0.0, 0.0])
    assert judged(run) == [(0, True)]
    finish(run, [10.0, 80.0, 0.0])
    decide(run, 1, promoted=True, by="hand", why="asked for")
    assert judged(run) == []
    decide(run, 0, promoted=True, by="hand", why="asked for")
    finish(run, [87.0, 80.0, 50.0])
    assert judged(run) == [(2, True)], "it is compared with stage 0, to which the person went back"
