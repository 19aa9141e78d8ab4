"""The perplexities on general text in summaries, reports, pages and tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from ray_l4.errors import DamagedError
from ray_l4.report.aggregate import GENERAL_TEXT, aggregate, general_columns
from ray_l4.report.finished_run import FinishedRun
from ray_l4.report.groups import group_table, grouped
from ray_l4.report.html.page import render
from ray_l4.report.html.section_general import general
from ray_l4.report.markdown import run_report
from ray_l4.report.results import load
from ray_l4.report.summary import summarise
from ray_l4.report.tables.build import build
from ray_l4.report.tables.render import markdown
from ray_l4.store.atomic import write_json
from ray_l4.store.general import GENERAL, start_cell, write_general
from ray_l4.store.run_directory import Cell, RunDirectory
from tests.report.finished_runs import TASKS, write_run

COURSE = (20.0, 21.0, 23.5, 30.25)


def followed(
    path: Path, course: Sequence[float | None] = COURSE, text: str = "prose.txt", seed: int = 0
) -> FinishedRun:
    """A finished run of two students; student 1 is at one more than student 0."""
    run = RunDirectory.open(write_run(path, seed=seed))
    record = {"text": text, "tokens": 400, "digest": text}
    for student in (0, 1):
        cells = [start_cell(student), *(Cell(stage, 2, student, GENERAL) for stage in range(len(TASKS)))]
        for cell, value in zip(cells, course, strict=True):
            write_general(run, cell, record | {"perplexity": None if value is None else value + student})
    write_json(run.path / "summary.json", summarise(run))
    return FinishedRun.open(run.path)


def test_a_summary_has_the_course_of_every_student_and_its_end(tmp_path: Path) -> None:
    run = followed(tmp_path / "run")
    assert run.summary["general"] == {
        "text": "prose.txt",
        "tokens": 400,
        "digest": "prose.txt",
        "perplexity": {"0": [*COURSE], "1": [value + 1 for value in COURSE]},
    }
    assert [run.figure("general_perplexity", student) for student in run.students] == [30.25, 31.25]


def test_a_run_without_general_text_has_neither_key_nor_column_nor_section(tmp_path: Path) -> None:
    run = FinishedRun.open(write_run(tmp_path / "run"))
    assert not {"general", "general_perplexity"} & run.summary.keys()
    assert run.general == {}
    assert general(run, "x") is None
    assert "General text" not in run_report(run)
    assert GENERAL_TEXT not in aggregate([run]).columns
    assert GENERAL_TEXT not in group_table(grouped([run])[0])


def test_reports_show_the_course(tmp_path: Path) -> None:
    run = followed(tmp_path / "run", (20.0, None, 23.5, 30.25))
    text = run_report(run)
    part = text[text.index("## General text") : text.index("## Cost")]
    assert "prose.txt, 400 tokens" in part
    assert "| student 0  |  20.00 |" in part
    assert part.count("–") == 2, "what is missing"
    page = render([run])
    assert "General text" in page
    assert "student 0: 20.00, –, 23.50, 30.25; student 1: 21.00, –, 24.50, 31.25" in page


def test_tables_have_mean_and_deviation_and_the_lowest_is_best(tmp_path: Path) -> None:
    runs = [followed(tmp_path / f"s{seed}", (*COURSE[:3], 30.0 + 2 * seed), seed=seed) for seed in (0, 1)]
    table = aggregate(runs, students=(0, 1))
    [block] = table.blocks
    cell = block.rows[0].cells[GENERAL_TEXT]
    assert cell is not None
    assert (cell.mean, cell.sd) == (31.0, pytest.approx(2**0.5))
    assert table.best(block, GENERAL_TEXT) == {"l4"}
    assert "31.0 ± 1.4" in group_table(grouped(runs)[0])
    sheet = markdown(build(load([run.path for run in runs])))
    assert GENERAL_TEXT in sheet
    assert "31.0 ± 1.4" in sheet
    assert "general ppl: final perplexity on general text (prose.txt, 400 tokens)." in sheet


def test_runs_that_have_none_stay_in_the_table(tmp_path: Path) -> None:
    runs = [followed(tmp_path / "with"), FinishedRun.open(write_run(tmp_path / "without", seed=1))]
    [block] = aggregate(runs).blocks
    cell = block.rows[0].cells[GENERAL_TEXT]
    assert cell is not None
    assert (cell.mean, cell.count, block.rows[0].runs) == (30.25, 1, 2)


def test_perplexities_on_different_texts_are_not_compared(tmp_path: Path) -> None:
    runs = [followed(tmp_path / "a"), followed(tmp_path / "b", text="other.txt", seed=1)]
    assert general_columns(runs) == ()
    sheet = markdown(build(load([run.path for run in runs])))
    assert GENERAL_TEXT not in sheet
    assert "left out: the runs have different texts" in sheet


@pytest.mark.parametrize("broken", [{"0": [1.0]}, {"0": "high"}])
def test_a_summary_with_another_shape_is_damaged(tmp_path: Path, broken: dict[str, object]) -> None:
    run = followed(tmp_path / "run")
    summary = dict(run.summary)
    write_json(run.path / "summary.json", summary | {"general": {**summary["general"], "perplexity": broken}})
    with pytest.raises(DamagedError, match="general"):
        FinishedRun.open(run.path)
