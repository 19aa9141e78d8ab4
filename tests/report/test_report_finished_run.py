"""The reader of finished runs: results, scores, teachers, and what early or damaged runs lack."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ray_l4.errors import RunDirectoryError
from ray_l4.report.finished_run import FinishedRun, labels
from ray_l4.report.run_result import NO_ORDER
from ray_l4.store.atomic import write_json
from ray_l4.store.run_directory import Cell, read_json
from tests.report.html_runs import TASKS, Parts, as_an_older_version_left_it, read, score_of, write_run

ORDER = " -> ".join(TASKS)


def finished(folder: Path, method: str = "l4", **settings: Any) -> FinishedRun:
    return read(write_run(folder / method, method, **settings))


def test_a_run_knows_its_row_order_seed_and_students(tmp_path: Path) -> None:
    run = finished(tmp_path, seed=3, variant="lambda 1")
    assert (run.variant, run.order, run.seed, run.tasks) == ("lambda 1", ORDER, 3, TASKS)
    assert run.label == "lambda 1, seed 3"
    assert list(run.students) == [0, 1]


def test_the_result_of_a_student(tmp_path: Path) -> None:
    run = finished(tmp_path)
    cells = [[Cell(stage, 2, 1, task) for task in TASKS] for stage in range(3)]
    assert run.matrix(1) == [[score_of(cell) for cell in row] for row in cells]
    assert run.final(1) == {task: score_of(cell) for task, cell in zip(TASKS, cells[-1], strict=True)}
    assert run.figure("average_accuracy", 1) == pytest.approx(47.0)


def test_a_trajectory_has_every_epoch_in_order(tmp_path: Path) -> None:
    found = finished(tmp_path).trajectory(1)
    assert list(found) == [(stage, epoch) for stage in range(3) for epoch in (1, 2)]
    assert found[2, 1] == {task: score_of(Cell(2, 1, 1, task)) for task in TASKS}


@pytest.mark.parametrize(("method", "stage"), [("l4", 2), ("single-qa", 1), ("multi-qa", 0)])
def test_the_final_cell_depends_on_how_tasks_are_learned(tmp_path: Path, method: str, stage: int) -> None:
    run = finished(tmp_path, method)
    cell = Cell(stage, 2, 0, TASKS[1])
    assert run.final_cell(0, TASKS[1]) == run.last_scored_cell(0, TASKS[1]) == cell
    assert run.scores[cell] == score_of(cell)
    assert (run.order == NO_ORDER) == (method != "l4")


def test_the_last_scored_cell_of_a_student_that_was_lost_is_not_the_final_one(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    for path in (run.path / "scores").glob("stage-2.*.student-1.*"):
        path.unlink()
    assert read(run).last_scored_cell(1, TASKS[0]) == Cell(1, 2, 1, TASKS[0])
    assert read(run).final_cell(1, TASKS[0]) == Cell(2, 2, 1, TASKS[0])


def test_an_early_run_has_the_values_that_its_version_implies(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", variant="l4 (lambda 0)")
    as_an_older_version_left_it(run)
    summary = run.summary()
    for key in ("topology", "restarts", "lost_students"):
        del summary[key]
    found = FinishedRun(summary, run)
    assert (found.variant, found.stages, found.graph) == ("l4", TASKS, "complete: every student from all others")
    assert (found.restarts, found.lost_students, found.learns_from_others) == (0, {}, True)


def test_files_that_a_run_does_not_have_are_none(tmp_path: Path) -> None:
    run = read(write_run(tmp_path / "run", "lamol", parts=Parts(timeline=False, steps=False)))
    found = (run.steps, run.timeline(), run.replayed_examples(0), run.teacher_answers(TASKS[0]), run.own_teachers)
    assert found == (None,) * 5
    assert run.predictions(Cell(9, 9, 0, TASKS[0])) is None
    answers = run.predictions(run.final_cell(0, TASKS[0]))
    assert answers is not None
    assert answers.column_names == ["sample_id", "prediction", "references", "score", "context", "question"]


def test_the_scale_is_that_of_the_manifest(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    assert (read(run).scale, read(run).scale_note) == (None, "")
    for scale, note in ((1.0, ""), (0.1, ", scaled to 0.1 of its examples and epochs")):
        write_json(run.path / "manifest.json", read_json(run.path / "manifest.json") | {"scale": scale})
        assert (read(run).scale, read(run).scale_note) == (scale, note)


def test_teachers_are_those_inside_the_run_or_those_it_was_given(tmp_path: Path) -> None:
    student = write_run(tmp_path / "a", "l2kd-word")
    assert read(student).teachers is None
    inside = write_run(student.path / "teachers", "single-qa-lm")
    own = read(student).teachers
    assert own is not None and own.path == inside.path
    given = finished(tmp_path / "b", "l2kd-word", teachers={"run": str(inside.path)})
    assert given.own_teachers is None
    assert given.teachers is not None and given.teachers.path == inside.path
    assert finished(tmp_path / "c", "lamol").teachers is None


def test_runs_of_one_label_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    runs = [read(write_run(tmp_path / name)) for name in ("a", "b")]
    assert labels(runs) == ["l4, seed 0 (a)", "l4, seed 0 (b)"]
    assert labels(runs[:1]) == ["l4, seed 0"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"headline": "em", "values": {}}', r"0\.e2enlg\.json: damaged.*holds no headline score: 'em'"),
        ('{"headline": "em", "values": {"em": null}}', r"0\.e2enlg\.json: damaged.*values\.em: "),
        ("{", r"0\.e2enlg\.json: cannot be read as JSON"),
    ],
)
def test_a_damaged_score_is_named(tmp_path: Path, content: str, message: str) -> None:
    run = write_run(tmp_path / "run")
    (run.path / "scores" / "stage-0.epoch-1.student-0.e2enlg.json").write_text(content, encoding="utf-8")
    with pytest.raises(RunDirectoryError, match=message):
        _ = read(run).scores


def test_a_missing_text_file_and_an_unfinished_run_are_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    found = read(run)
    with pytest.raises(RunDirectoryError, match=r"notes\.txt: cannot be read"):
        found.text("notes.txt")
    (run.path / "summary.json").unlink()
    with pytest.raises(RunDirectoryError, match="did not finish"):
        read(run)
    with pytest.raises(RunDirectoryError, match="not a run directory"):
        FinishedRun.open(tmp_path)
