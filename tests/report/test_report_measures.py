"""The measures of tables: forgetting, cost, means over orders, and agreement with teachers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_l4.errors import ConfigError, RunDirectoryError
from ray_l4.report.aggregate import AVERAGE, ResultTable, Statistic
from ray_l4.report.agreement import agreement, agreement_by_task, split
from ray_l4.report.figures.kinds import draw
from ray_l4.report.finished_run import FinishedRun
from ray_l4.report.html.page import render
from ray_l4.report.markdown import comparison
from ray_l4.report.measures import (
    HOURS,
    MEMORY,
    OVER_ORDERS,
    cost,
    cost_of,
    forgetting,
    forgetting_of,
    over_orders,
    scores,
)
from ray_l4.report.results import load
from ray_l4.report.run_result import NO_ORDER
from ray_l4.report.tables.build import build
from ray_l4.store.atomic import write_json
from tests.report.finished_runs import TASKS, write_run

# Epoch 2 of the second task is the best of the first task: only epochs see it.
COURSE = {(0, 1): 70.0, (0, 2): 80.0, (1, 1): 85.0, (1, 2): 75.0, (2, 1): 60.0, (2, 2): 50.0}


def course(stage: int, epoch: int, student: int, task: str) -> float:
    return COURSE[stage, epoch] if task == TASKS[0] else 40.0 + stage


def rows(table: ResultTable, block: int = 0) -> dict[str, dict[str, Statistic | None]]:
    return {row.label: dict(row.cells) for row in table.blocks[block].rows}


def test_forgetting_is_from_the_best_of_all_tasks_or_if_asked_of_all_epochs(tmp_path: Path) -> None:
    run = FinishedRun.open(write_run(tmp_path / "a", score=course))
    assert forgetting_of(run, 0) == {"woz.en": 30.0, "wikisql": 0.0, AVERAGE: 15.0}
    assert forgetting_of(run, 0)[AVERAGE] == run.summary["forgetting"]["0"]
    assert forgetting_of(run, 0, over_epochs=True) == {"woz.en": 35.0, "wikisql": 0.0, AVERAGE: 17.5}
    assert forgetting_of(run, 0, over_epochs=True)[AVERAGE] == run.summary["forgetting_over_epochs"]["0"]


def test_every_report_of_a_run_that_scores_each_epoch_has_the_same_forgetting(tmp_path: Path) -> None:
    results = load([write_run(tmp_path / "a", "finetune", score=course)])
    (run,) = results.runs
    (sheet_row,) = build(results).blocks[0].rows
    bars = draw("forgetting", results, 0).subfigs[0].axes[0].containers[0]
    page = re.search(r'id="run-0-forgetting-alternative">(.*?)</desc>', render([run]))
    assert run.summary["forgetting"]["0"] == 15.0
    assert sheet_row.cells[-1].ours == Statistic(15.0)
    assert rows(forgetting(results, (0,)))["finetune"][AVERAGE] == Statistic(15.0)
    assert [bar.get_height() for bar in bars] == [30.0, 0.0, 15.0]
    assert page and page[1] == "woz.en: student 0 30.0; wikisql: student 0 0.0; mean of these: student 0 15.0"
    assert "|       15.0 |" in comparison([run])


def test_scores_of_single_epochs_are_refused_where_there_are_none(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / "a"), write_run(tmp_path / "b", "lamol", evaluation={"when": "stage"})]
    with pytest.raises(ConfigError, match=rf"{folders[1]}: has no scores of single epochs \(evaluation.when: stage\)"):
        load(folders, over_epochs=True)
    over = rows(scores(load(folders[:1], over_epochs=True), (0,)))["l4"]
    assert over["forgetting over epochs"] == Statistic(15.0) and "forgetting" not in over


def test_forgetting_of_a_run_scored_after_tasks_only_is_that_of_its_summary(tmp_path: Path) -> None:
    def last_epoch(stage: int, epoch: int, student: int, task: str) -> float | None:
        return course(stage, epoch, student, task) if epoch == 2 else None

    run = FinishedRun.open(write_run(tmp_path / "a", score=last_epoch, evaluation={"when": "stage"}))
    assert forgetting_of(run, 0) == {"woz.en": 30.0, "wikisql": 0.0, AVERAGE: 15.0}
    assert forgetting_of(run, 0)[AVERAGE] == run.summary["forgetting"]["0"]


def test_forgetting_table_has_both_students_and_no_methods_without_an_order(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / "a", score=course), write_run(tmp_path / "b", "multi-qa")]
    table = forgetting(load(folders), (0, 1))
    assert [block.title for block in table.blocks] == [" -> ".join(TASKS)]
    assert list(rows(table)) == ["l4", "l4, student 1"]
    assert rows(table)["l4"]["cnn_dailymail"] is None
    assert table.lower_is_better >= {"woz.en", AVERAGE}


def test_cost_sums_students_and_their_time_holds_that_of_their_teachers(tmp_path: Path) -> None:
    student = write_run(tmp_path / "a", "l2kd-word", seconds=1800)
    write_run(student / "teachers", "single-qa-lm", seconds=900)
    folders = [student, write_run(tmp_path / "b", "l4", seconds=3600), write_run(tmp_path / "c", "l4", 1, seconds=7200)]
    table = cost(load(folders), ())
    assert rows(table)["l2kd-word"] == {MEMORY: Statistic(2.0), HOURS: Statistic(0.5)}
    assert rows(table)["l4"][MEMORY] == Statistic(4.0, 0.0, 2)  # two students, the evaluator not counted
    assert rows(table)["l4"][HOURS] == Statistic(1.5, pytest.approx(0.5**0.5), 2)


def test_the_time_of_teachers_from_another_run_is_added(tmp_path: Path) -> None:
    teachers = write_run(tmp_path / "t", "single-qa-lm", seconds=900)
    student = write_run(tmp_path / "a", "l2kd-word", seconds=1800, teachers={"run": str(teachers)})
    assert rows(cost(load([student]), ()))["l2kd-word"][HOURS] == Statistic(0.75)


def test_the_memory_of_a_run_in_one_process_is_that_of_the_process(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a")
    run = FinishedRun.open(folder)
    write_json(folder / "summary.json", dict(run.summary) | {"peak_memory_bytes": {"process": 3 * 10**9}})
    assert cost_of(FinishedRun.open(folder))[MEMORY] == 3.0


def test_each_order_counts_once_whatever_its_number_of_seeds(tmp_path: Path) -> None:
    orders = [TASKS, TASKS[::-1]]
    told = [(orders[0], 0, 10.0), (orders[0], 1, 30.0), (orders[1], 0, 50.0)]
    folders = [
        write_run(tmp_path / str(index), "lamol", seed, stream, lambda s, e, p, t, value=value: value)
        for index, (stream, seed, value) in enumerate(told)
    ]
    table = over_orders(load([*folders, write_run(tmp_path / "m", "multi-qa")]), (0,))
    assert [block.title for block in table.blocks] == [NO_ORDER, OVER_ORDERS]
    assert rows(table, 1)["lamol"]["woz.en"] == Statistic(35.0, pytest.approx(450**0.5), 2)  # of 20 and 50


@given(st.lists(st.tuples(st.sampled_from([0.0, 40.0, 100.0]), st.sampled_from([0.0, 100.0])), min_size=1, max_size=9))
def test_both_groups_together_are_all_examples(pairs: Sequence[tuple[float, float]]) -> None:
    found = split(pairs)
    right = sum(teacher == 100 for teacher, _ in pairs)
    total = right * (found["A"] or 0.0) + (len(pairs) - right) * (found["B"] or 0.0)
    assert found["accuracy"] == pytest.approx(total / len(pairs))
    assert (found["A"] is None) == (right == 0) and (found["B"] is None) == (right == len(pairs))


TEACHER = {"woz.en": [100, 100, 0, 0], "wikisql": [100, 0, 0, 50], "cnn_dailymail": [100]}
STUDENT = {"woz.en": [100, 0, 100, 0], "wikisql": [100, 100, 0, 50], "cnn_dailymail": [100]}


def write_pair(folder: Path, seed: int = 0, method: str = "l2kd-word", **changes: Any) -> Path:
    student = write_run(folder, method, seed, answers=STUDENT)
    write_run(student / "teachers", "single-qa-lm", seed, answers=TEACHER, **changes)
    return student


def test_agreement_over_all_examples_together(tmp_path: Path) -> None:
    table = agreement(load([write_pair(tmp_path / "a")]), (0,))
    assert rows(table) == {
        "teacher": {
            "accuracy": Statistic(450 / 9),
            "A": Statistic(100.0),
            "B": Statistic(10.0),  # half a right answer among five
        },
        "l2kd-word": {"accuracy": Statistic(550 / 9), "A": Statistic(75.0), "B": Statistic(50.0)},
    }


def test_agreement_by_task_has_a_block_each(tmp_path: Path) -> None:
    table = agreement_by_task(load([write_pair(tmp_path / "a")]), (0,))
    order = " -> ".join(TASKS)
    assert [block.title for block in table.blocks] == [f"{order}: {task}" for task in TASKS]
    assert rows(table, 2)["l2kd-word"] == {"accuracy": Statistic(100.0), "A": Statistic(100.0), "B": None}


def test_a_run_without_teachers_is_held_against_those_of_its_seed(tmp_path: Path) -> None:
    folders = [write_pair(tmp_path / f"w{seed}", seed) for seed in (0, 1)]
    folders += [write_run(tmp_path / f"m{seed}", "lamol", seed, answers=TEACHER) for seed in (0, 1)]
    table = rows(agreement(load(folders), (0,)))
    assert table["lamol"]["A"] == Statistic(100.0, 0.0, 2)
    assert table["teacher"]["A"] == Statistic(100.0, 0.0, 2)


def test_equal_teachers_of_several_methods_count_once_for_each_seed(tmp_path: Path) -> None:
    methods = ("l2kd-word", "l2kd-seq", "l2kd-seq-soft")
    folders = [write_pair(tmp_path / f"{method}{seed}", seed, method) for method in methods for seed in (0, 1)]
    (block,) = agreement(load(folders), (0,)).blocks
    assert {row.label: row.runs for row in block.rows} == {"teacher": 2} | dict.fromkeys(methods, 2)


def test_single_task_runs_are_teachers_and_have_no_row_of_their_own(tmp_path: Path) -> None:
    folders = [
        write_run(tmp_path / "s", "single-qa-lm", answers=TEACHER),
        write_run(tmp_path / "m", "lamol", answers=STUDENT),
    ]
    assert list(rows(agreement(load(folders), (0,)))) == ["teacher", "lamol"]


def test_without_any_teachers_it_says_what_to_add(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"lamol has no teachers, and no other run with seed 0.*single-qa-lm"):
        agreement(load([write_run(tmp_path / "m", "lamol")]), (0,))


def test_answers_must_be_there_with_their_scores(tmp_path: Path) -> None:
    student = write_pair(tmp_path / "a")
    answers = student / "predictions" / "stage-2.epoch-2.student-0.wikisql.parquet"
    older = pq.read_table(answers).drop_columns("score").replace_schema_metadata(None)
    pq.write_table(older, answers)  # as an older version wrote it
    with pytest.raises(RunDirectoryError, match=rf"{answers}: has no column 'score'.*Run {student} again"):
        agreement(load([student]), (0,))
    answers.unlink()
    with pytest.raises(RunDirectoryError, match=f"{answers}: no such file"):
        agreement(load([student]), (0,))


def test_answers_to_other_examples_cannot_be_compared(tmp_path: Path) -> None:
    student = write_run(tmp_path / "a", "l2kd-word", answers=STUDENT)
    write_run(student / "teachers", "single-qa-lm", answers=TEACHER | {"woz.en": [100]})
    with pytest.raises(RunDirectoryError, match=r"different test examples of woz\.en, such as 'woz\.en-1'"):
        agreement(load([student]), (0,))
