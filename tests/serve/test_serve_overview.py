"""The overview of a run: from its directory alone, for every state that a run can be in."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ray_l4.config.loading import dump_yaml
from ray_l4.errors import RunDirectoryError
from ray_l4.report.run_files import Headline
from ray_l4.serve.overview import overview
from ray_l4.serve.run_reading import read_headline
from ray_l4.store.atomic import write_text
from ray_l4.store.inbox.assignments import set_aside, take
from ray_l4.store.inbox.example import Example
from ray_l4.store.inbox.inbox import Inbox
from ray_l4.store.promotion import decide
from ray_l4.store.run_directory import Cell, RunDirectory, RunState
from ray_l4.tasks.inbox_tasks import add_task
from tests.report.finished_runs import TASKS, fading, write_run

FIRST, SECOND, THIRD = TASKS


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """Three stages. Student 1 is one per cent better in all of them."""
    return RunDirectory(write_run(tmp_path / "run", finished=False))


def test_a_finished_run(run: RunDirectory) -> None:
    found = overview(run)
    assert found.served is not None
    assert (found.served.stage, found.served.name, found.served.student) == (2, THIRD, 1)
    assert [(task.name, task.score, task.best, task.forgetting, task.stages) for task in found.tasks] == [
        (FIRST, 61.0, 81.0, 20.0, [0]),
        (SECOND, 71.0, 81.0, 10.0, [1]),
        (THIRD, 81.0, 81.0, 0.0, [2]),
    ]
    assert (found.average, found.forgetting, found.students, found.method) == (71.0, 15.0, 2, "l4")
    assert [(stage.state, stage.served, stage.student) for stage in found.stages] == [
        ("finished", False, 1),
        ("finished", False, 1),
        ("finished", True, 1),
    ]
    assert found.stages[0].scores == {FIRST: 81.0, SECOND: 2.0 - 1, THIRD: 1.0}
    assert all(stage.finished for stage in found.stages)
    assert (found.learning, found.problems) == (None, [])


def test_a_run_before_its_first_stage_has_ended(run: RunDirectory) -> None:
    run.save_state(RunState())
    found = overview(run)
    assert (found.served, found.average, found.forgetting) == (None, None, None)
    assert [stage.state for stage in found.stages] == ["under way", "to come", "to come"]
    assert [(task.score, task.forgetting, task.stages) for task in found.tasks] == [(None, None, [])] * 3
    assert found.stages[0].scores == {}


def test_a_stage_under_way_says_how_far_it_is_and_whether_somebody_works_on_it(run: RunDirectory) -> None:
    run.save_state(RunState(stages_done=2))
    run.steps(2, 2).unlink()
    found = overview(run).learning
    assert found is not None
    assert (found.stage, found.tasks, found.running, found.epochs_done, found.epochs) == (2, [THIRD], False, 1, 2)
    with run.writing():
        running = overview(run).learning
    assert running is not None
    assert running.running


def test_a_refused_stage_is_not_served_and_says_why(run: RunDirectory) -> None:
    run.checkpoint(1, 2, 1).mkdir(parents=True)
    decide(run, 1, promoted=True, by="gate", why="it rose")
    decide(run, 2, promoted=False, by="gate", why="woz.en fell by 10.0")
    found = overview(run)
    assert found.served is not None
    assert found.served.stage == 1
    assert [(stage.promoted, stage.why, stage.served) for stage in found.stages] == [
        (None, None, False),
        (True, "it rose", True),
        (False, "woz.en fell by 10.0", False),
    ]
    third = found.tasks[2]  # not learned by the stage that is served
    assert (third.score, third.forgetting, third.stages) == (1.0, None, [2])
    assert (found.average, found.forgetting) == (76.0, 10.0)


def test_lost_students_are_left_out(run: RunDirectory) -> None:
    run.save_state(RunState(stages_done=3, lost_students={1: "it died"}))
    found = overview(run)
    assert found.served is not None
    assert found.served.student == 0
    assert found.average == 70.0


def test_missing_scores_are_no_scores(tmp_path: Path) -> None:
    path = write_run(
        tmp_path / "run",
        finished=False,
        score=lambda stage, epoch, student, task: None if stage == 2 else fading(stage, epoch, student, task),
    )
    found = overview(RunDirectory(path))
    assert found.served is not None
    assert (found.served.stage, found.served.student) == (2, 0)
    assert [(task.score, task.best, task.forgetting) for task in found.tasks] == [
        (None, 81.0, None),
        (None, 81.0, None),
        (None, 1.0, None),
    ]
    assert (found.average, found.forgetting) == (None, None)


@pytest.mark.parametrize("method", ["multi-qa", "single-qa", "finetune", "l2kd-word"])
def test_runs_of_other_kinds(tmp_path: Path, method: str) -> None:
    found = overview(RunDirectory(write_run(tmp_path / "run", method, finished=False)))
    assert found.served is not None
    assert found.stages[-1].served
    expected = {"multi-qa": [TASKS], "single-qa": [(task,) for task in TASKS]}.get(method, [(task,) for task in TASKS])
    assert [tuple(stage.tasks) for stage in found.stages] == expected


def test_the_inbox_is_counted_and_new_tasks_are_shown(run: RunDirectory) -> None:
    box = Inbox(run.path)
    box.add(SECOND, [Example("c", "q", ("a",)), Example("d", "q", ("a",))])
    add_task(run, run.experiment(), "new one", "nf1", "Who?")
    box.add("new one", [Example("c", "q", ("a",))])
    (run.path / "inbox" / "bad").mkdir()
    (run.path / "inbox" / "bad" / "task.yaml").write_text("metric: rogue")
    found = overview(run, ["a file is broken"])
    assert [(task.name, task.waiting, task.is_new) for task in found.tasks] == [
        (FIRST, 0, False),
        (SECOND, 2, False),
        (THIRD, 0, False),
        ("new one", 1, True),
    ]
    new = found.tasks[-1]
    assert (new.metric, new.question, new.score, new.best, new.stages) == ("nf1", "Who?", None, None, [])
    assert len(found.problems) == 2
    assert found.tasks[1].metric == "lfem"


def test_what_was_set_aside_is_a_problem_that_says_what_to_do(run: RunDirectory) -> None:
    add_task(run, run.experiment(), "new one", "nf1")
    for task in (SECOND, "new one"):
        Inbox(run.path).add(task, [Example("c", "q", ("a",)), Example("d", "q", ("a",))])
    known, new = take(run, [SECOND, "new one"])
    set_aside(run, [known.number, new.number], "the answer is too long")
    first, second = overview(run).problems
    assert f"assignment 1 of the inbox, of task {SECOND!r}, was set aside" in first
    assert "the answer is too long. Correct" in first
    assert f"(ray-l4 extend {run.path} {SECOND}={known.folder(run.path)})" in first
    assert f"(ray-l4 extend {run.path} 'new one={new.folder(run.path)}' --metric nf1)" in second
    shutil.rmtree(known.folder(run.path))
    assert overview(run).problems == [second]


def test_a_run_without_figures_of_steps_does_not_know_when_stages_ended(run: RunDirectory) -> None:
    for path in (run.path / "steps").iterdir():
        path.unlink()
    assert [stage.finished for stage in overview(run).stages] == [None] * 3


def test_a_damaged_record_is_an_error(run: RunDirectory) -> None:
    write_text(run.path / "state.json", "{")
    with pytest.raises(RunDirectoryError, match=r"state\.json"):
        overview(run)


def test_scores_are_read_by_whoever_keeps_them(run: RunDirectory) -> None:
    cell = Cell(2, 2, 0, FIRST)
    assert read_headline(run, cell) == Headline("em", 60.0)
    assert read_headline(run, Cell(9, 1, 0, FIRST)) is None
    asked: list[Cell] = []

    def kept(run: RunDirectory, cell: Cell) -> Headline | None:
        asked.append(cell)
        return Headline("em", 50.0)

    assert overview(run, read_score=kept).average == 50.0
    assert len(asked) == len(set(asked)) == 2 * 3 * 3


def test_the_state_of_a_run_that_is_behind_its_stream(run: RunDirectory) -> None:
    """A run that was extended: its new stage is to come."""
    experiment = run.experiment()
    longer = [*experiment.stream, experiment.stream[0].model_copy(update={"name": "another"})]
    write_text(run.path / "config.yaml", dump_yaml(experiment.model_copy(update={"stream": longer})))
    found = overview(run)
    assert found.learning is not None
    assert found.learning.name == "another"
    assert found.served is not None
    assert found.served.stage == 2
