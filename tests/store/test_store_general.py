"""Records of perplexities: their files, and the cells that they stand for."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_l4.errors import DamagedError
from ray_l4.store.general import GENERAL, general_files, read_general, start_cell, write_general
from ray_l4.store.run_directory import Cell, RunDirectory
from ray_l4.store.whole_stages import damaged_scores

RECORD = {"perplexity": 12.5, "text": "prose.txt", "tokens": 400, "digest": "ab"}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    assert read_general(run) == {}
    cells = [start_cell(0), start_cell(11), Cell(0, 1, 0, GENERAL), Cell(10, 12, 1, GENERAL)]
    for number, cell in enumerate(cells):
        write_general(run, cell, RECORD | {"perplexity": None if number else 2.0})
    assert {cell: record["perplexity"] for cell, record in read_general(run).items()} == {
        cell: None if number else 2.0 for number, cell in enumerate(cells)
    }
    assert sorted(path.name for path in (tmp_path / "general").glob("*.json")) == [
        "stage-0.epoch-1.student-0.json",
        "stage-10.epoch-12.student-1.json",
        "start.student-0.json",
        "start.student-11.json",
    ]
    assert run.scores() == {}, "it is the score of no task"


@given(st.integers(0, 99), st.integers(1, 99), st.integers(0, 99))
def test_the_start_comes_before_every_checkpoint(stage: int, epoch: int, student: int) -> None:
    cell = Cell(stage, epoch, student, GENERAL)
    assert start_cell(student) < cell
    assert start_cell(student).checkpoint != cell.checkpoint


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "general"
    folder.mkdir()
    for name in ("notes.json", "start.student-x.json", "stage-1.epoch-1.student-0.json.tmp"):
        (folder / name).write_text("{}")
    assert list(general_files(RunDirectory(tmp_path))) == []


@pytest.mark.parametrize("change", [{"perplexity": "high"}, {"digest": None}, {"tokens": -1}])
def test_a_record_of_other_types_is_damaged(tmp_path: Path, change: dict[str, object]) -> None:
    write_general(RunDirectory(tmp_path), start_cell(0), RECORD | change)
    with pytest.raises(DamagedError, match=rf"start.student-0.json: .*{next(iter(change))}"):
        read_general(RunDirectory(tmp_path))


def test_damaged_records_can_be_taken_again_while_the_model_is_there(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    cells = [start_cell(0), Cell(0, 1, 0, GENERAL), Cell(1, 1, 0, GENERAL)]
    for cell in cells:
        write_general(run, cell, RECORD)
        (tmp_path / "general" / f"{cell.checkpoint}.json").write_text("{")
    run.checkpoint(1, 1, 0).mkdir(parents=True)
    found = sorted(path.name for path, _ in damaged_scores(run))
    assert found == ["stage-1.epoch-1.student-0.json", "start.student-0.json"]
