"""Tables as a user asks for them: our runs and the paper's values, omissions, and refusals."""

from __future__ import annotations

from pathlib import Path

import pytest

from ray_l4.errors import ConfigError
from ray_l4.report.aggregate import Statistic
from ray_l4.report.figures.kinds import KINDS
from ray_l4.report.paired import Difference
from ray_l4.report.results import load
from ray_l4.report.tables.build import build, chosen_table
from ray_l4.report.tables.published_tables import keys
from ray_l4.report.tables.sheet import Sheet
from tests.report.finished_runs import fading, write_run, write_sweep

ORDER = "woz.en -> wikisql -> cnn_dailymail"


def grid(sheet: Sheet, block: int = 0) -> dict[str, list[tuple[float | None, float | None]]]:
    """Return row -> (our mean, published mean) of each column."""
    return {
        row.label: [(c.ours.mean if c.ours else None, c.published.mean if c.published else None) for c in row.cells]
        for row in sheet.blocks[block].rows
    }


def test_ours_beside_the_paper_with_rows_of_both(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / "a"), write_run(tmp_path / "b", seed=1), write_run(tmp_path / "c", "ewc")]
    sheet = build(load(folders), "l4-table1")
    assert [block.title for block in sheet.blocks] == [ORDER]
    assert sheet.columns == ("woz.en", "cnn_dailymail", "wikisql", "average")
    assert grid(sheet) == {
        "finetune": [(None, 0.0), (None, 25.8), (None, 0.0), (None, 8.6)],
        "lamol": [(None, 76.1), (None, 26.3), (None, 59.3), (None, 53.9)],
        "l2kd-word": [(None, 81.4), (None, 26.7), (None, 59.6), (None, 55.9)],
        "l4": [(60.0, 83.7), (80.0, 26.7), (70.0, 56.7), (70.0, 55.7)],
        "ewc": [(60.0, None), (80.0, None), (70.0, None), (70.0, None)],
    }
    assert sheet.blocks[0].rows[3].cells[0].ours == Statistic(60.0, 0.0, 2)
    assert any(note.startswith("No run of: woz.en -> cnn_dailymail -> wikisql; ") for note in sheet.notes)
    assert any("mixes two methods" in note for note in sheet.notes)


def test_forgetting_table_has_both_students(tmp_path: Path) -> None:
    sheet = build(load([write_run(tmp_path / "a")]), "l4-table3")
    found = grid(sheet)
    assert found["l4"] == [(20.0, 3.3), (10.0, 4.9), (15.0, 4.1)]
    assert found["l4, student 1"] == [(20.0, 2.9), (10.0, 3.1), (15.0, 3.0)]


def test_a_student_can_be_asked_for(tmp_path: Path) -> None:
    results = load([write_run(tmp_path / "a")])
    assert grid(build(results, None, 1)) == {
        "l4, student 1": [(61.0, None), (71.0, None), (81.0, None), (71.0, None), (15.0, None)]
    }
    with pytest.raises(ConfigError, match="no run has a student 2"):
        build(results, None, 2)


def test_over_orders_and_cost_and_agreement_are_joined_by_title(tmp_path: Path) -> None:
    student = write_run(tmp_path / "a", "l2kd-word")
    write_run(student / "teachers", "single-qa-lm")
    results = load([student, write_run(tmp_path / "b", "multi-qa")])
    over = build(results, "l2kd-table3")
    assert grid(over, 0)["multi-qa"][0][1] == 66.2
    assert grid(over, 1)["l2kd-word"] == [(60.0, 81.9), (80.0, 27.0), (70.0, 61.9), (70.0, 57.0)]
    assert grid(build(results, "l4-table8"))["l2kd-word"] == [(2.0, 19.3), (1.0, 7.0)]
    agreeing = build(load([student]), "l2kd-table6")
    assert list(grid(agreeing)) == ["teacher", "l2kd-word"]  # other tasks than the paper's: only ours
    assert any(note.startswith("No run of: amazon") for note in agreeing.notes)


def test_titles_say_the_scale_models_and_seeds(tmp_path: Path) -> None:
    trials = {name: {"seed": seed} for name, seed in (("x", 3), ("y", 1))}
    sheet = build(load([write_sweep(tmp_path / "s", trials, "l4-table1", 0.1)]), "l4-table1")
    assert sheet.title == "L4, Table 1: different tasks in six orders, scaled to 0.1 of the examples and epochs"
    assert sheet.setting == (
        "by hand; model: 2-layer GPT-2 of width 8 from scratch; training examples per task: 100; epochs: 2; seeds: 1, 3"
    )
    assert build(load([tmp_path / "s"])).title == "by hand"  # a sweep's own title says its scale
    assert build(load([tmp_path / "s" / "x"])).title == "1 run"


def test_the_sweep_names_its_table_and_the_option_wins(tmp_path: Path) -> None:
    results = load([write_sweep(tmp_path / "s", {"x": {"method": "l4"}}, "l4-table1")])
    assert [chosen_table(results, option) for option in (None, "l4-table6", "none")] == ["l4-table1", "l4-table6", None]
    assert chosen_table(load([write_run(tmp_path / "a")]), None) is None


def test_a_figure_s_table_has_its_note_and_no_published_values(tmp_path: Path) -> None:
    sheet = build(load([write_run(tmp_path / "a")]), "l4-figure4")
    assert not sheet.has_published and list(grid(sheet)) == ["l4"]
    assert any("not printed" in note for note in sheet.notes)


def test_runs_that_did_not_learn_the_tasks_of_the_table(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--table l4-table2: shows e2enlg.*but the runs learned ag, yelp"):
        build(load([write_run(tmp_path / "a", stream=("ag", "yelp"))]), "l4-table2")


def test_the_guide_names_every_table_and_kind_of_figure() -> None:
    guide = (Path(__file__).resolve().parents[2] / "docs" / "ANALYSIS.md").read_text(encoding="utf-8")
    assert [name for name in [*keys(), *KINDS] if f"`{name}`" not in guide] == []


def test_a_sheet_has_paired_differences_of_the_student_and_the_forgetting_that_it_shows(tmp_path: Path) -> None:
    def better(stage: int, epoch: int, student: int, task: str) -> float:
        return fading(stage, epoch, student, task) + student  # than the student itself of another run

    folders = [write_run(tmp_path / "a"), write_run(tmp_path / "b", variant="new", score=better)]
    folders.append(write_run(tmp_path / "c", "lamol"))
    assert build(load(folders)).paired is None
    results = load(folders, over_epochs=True, against="l4")
    paired = build(results, None, 1).paired
    assert paired is not None and paired.columns == ("average", "forgetting over epochs")
    assert [(row.label, row.pairs) for row in paired.rows] == [("new", 1), ("lamol", 0)]
    assert paired.rows[0].differences["average"] == Difference((1.0,))
