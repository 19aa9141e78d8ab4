"""Peers that were scored together in reports and tables: one more row, and never a student."""

from __future__ import annotations

from pathlib import Path

import pytest

from ray_l4.report import results
from ray_l4.report.finished_run import FinishedRun
from ray_l4.report.html.page import render
from ray_l4.report.markdown import run_report
from ray_l4.report.summary import summarise
from ray_l4.report.tables.build import build
from ray_l4.store.atomic import write_json
from ray_l4.store.run_directory import TOGETHER, Cell, RunDirectory
from tests.report.finished_runs import TASKS, _write_cell, fading, write_run


def together(folder: Path, method: str = "l4", seed: int = 0) -> Path:
    """A run whose students together are 5 points better than student 0."""
    write_run(folder, method, seed, evaluation={"when": "epoch", "together": True}, finished=False)
    run = RunDirectory(folder)
    for stage in range(len(TASKS)):
        for epoch in (1, 2):
            for task in TASKS:
                value = fading(stage, epoch, 5, task)
                _write_cell(run, Cell(stage, epoch, TOGETHER, task), value, [value])
    write_json(folder / "summary.json", summarise(run))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    return FinishedRun.open(together(tmp_path_factory.mktemp("together") / "run"))


def rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("| ").split("|")] for line in text.splitlines() if line[:2] == "| "]


def test_it_reads_like_a_student(run: FinishedRun) -> None:
    assert run.rows == (0, 1, TOGETHER) and list(run.students) == [0, 1]
    assert run.final(TOGETHER) == {task: score + 5 for task, score in run.final(0).items() if score is not None}
    assert run.figure("forgetting", TOGETHER) == run.figure("forgetting", 0)
    assert run.figure("forgetting_over_epochs", TOGETHER) is not None
    assert len(run.trajectory(TOGETHER)) == 6
    cell = run.last_scored_cell(TOGETHER, TASKS[0])
    assert cell == Cell(2, 2, TOGETHER, TASKS[0]) and run.predictions(cell) is not None


def test_the_markdown_report_has_it_beside_the_students(run: FinishedRun) -> None:
    text = run_report(run)
    beside = text.partition("## Students compared")[2].partition("## Student 0")[0]
    header, _, first, second, last = rows(beside)
    assert [first[0], second[0], last[0]] == ["0", "1", "together"]
    assert float(last[1]) == float(first[1]) + 5 and len(header) == len(last)
    assert rows(text.partition("## Together\n")[2])[2][:2] == [TASKS[0], "85.0"]
    assert "student 1000001" not in text.lower()


def test_the_page_has_it_beside_the_students(run: FinishedRun) -> None:
    page = render([run])
    assert f"matrix-{TOGETHER}" in page and f"curves-{TOGETHER}" in page
    assert "Score of every task after every stage, together" in page
    assert "Together after" in page, "its worst answers"
    header = page.partition("<h3>Students compared")[2].partition("</tr>")[0]
    places = [header.index(name) for name in ("student 1", "largest difference", "together")]
    assert places == sorted(places), "the difference is that of the students"
    assert "student 1000001" not in page.lower()


def test_tables_show_it_below_each_variant_that_has_it(tmp_path: Path) -> None:
    for seed in range(2):
        together(tmp_path / f"l4-{seed}", seed=seed)
    write_run(tmp_path / "lamol", "lamol", evaluation={"when": "epoch", "together": True})
    found = results.load(sorted(tmp_path.iterdir()))
    (block,) = build(found).blocks
    assert [(row.label, row.runs) for row in block.rows] == [("l4", 2), ("l4, together", 2), ("lamol", 1)]
    alone = [cell.ours.mean for cell in block.rows[0].cells if cell.ours]
    both = [cell.ours.mean for cell in block.rows[1].cells if cell.ours]
    assert both[: len(TASKS)] == pytest.approx([score + 5 for score in alone[: len(TASKS)]])


def test_runs_with_and_without_it_are_the_same_experiment(tmp_path: Path) -> None:
    together(tmp_path / "with")
    write_run(tmp_path / "without", seed=1)
    found = results.load(sorted(tmp_path.iterdir()))
    assert results.settings_of(found.runs[0]) == results.settings_of(found.runs[1])
