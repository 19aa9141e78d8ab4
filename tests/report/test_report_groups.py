"""Runs grouped by what they have in common: seeds are averaged, settings and orders are not."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_l4.errors import ConfigError
from ray_l4.report.aggregate import AVERAGE, Statistic
from ray_l4.report.finished_run import FinishedRun
from ray_l4.report.groups import BACKWARD, GroupBlock, group_table, grouped
from tests.report.finished_runs import TASKS, write_run


def opened(folder: Path, *told: dict[str, Any]) -> list[FinishedRun]:
    return [FinishedRun.open(write_run(folder / f"run{index}", epochs=1, **one)) for index, one in enumerate(told)]


def shape(blocks: list[GroupBlock]) -> dict[str, dict[str, str]]:
    return {block.title: {group.label: group.seeds for group in block.groups} for block in blocks}


def constant(value: float) -> dict[str, Any]:
    return {"score": lambda stage, epoch, student, task: value}


def test_seeds_are_one_row_with_mean_and_deviation(tmp_path: Path) -> None:
    told = [{"seed": 0, **constant(10.0)}, {"method": "lamol"}, {"seed": 3, **constant(30.0)}]
    (block,) = grouped(opened(tmp_path, *told))
    assert {group.name: group.seeds for group in block.groups} == {"l4, 2 seeds": "0, 3", "lamol, seed 0": "0"}
    assert block.groups[0].cells()[AVERAGE] == Statistic(20.0, pytest.approx(200**0.5), 2)
    assert block.groups[0].cells()[BACKWARD] == Statistic(0.0, 0.0, 2)
    whole, each = group_table(block).split("\n"), group_table(block, each=True).split("\n")
    assert "20.0 ± 14.1" in whole[2] and len(whole) == 4
    assert [line.split("|")[2].strip() for line in each[2:]] == ["0", "3", "0"] and "±" not in each[2]


def test_runs_with_other_settings_are_other_rows_which_name_them(tmp_path: Path) -> None:
    runs = opened(tmp_path, {}, {"optim": {"lr": 0.5}}, {"seed": 1}, {"seed": 1, "optim": {"lr": 0.5}})
    (block,) = grouped(runs)
    rate = runs[0].experiment.optim.lr
    assert {group.label: group.seeds for group in block.groups} == {
        f"l4, optim.lr {rate}": "0, 1",
        "l4, optim.lr 0.5": "0, 1",
    }


def test_settings_that_change_no_number_make_no_other_row(tmp_path: Path) -> None:
    elsewhere = {"checkpoint": {"keep": 1}, "data": {"raw": "/elsewhere"}, "name": "again"}
    (block,) = grouped(opened(tmp_path, {}, {"seed": 1, **elsewhere}))
    assert {group.label: group.seeds for group in block.groups} == {"l4": "0, 1"}


def test_a_seed_that_was_run_twice_is_not_counted_twice(tmp_path: Path) -> None:
    (block,) = grouped(opened(tmp_path, {}, {}, {"seed": 1}))
    assert {group.label: group.seeds for group in block.groups} == {"l4 (run0)": "0, 1", "l4 (run1)": "0"}


def test_every_order_has_a_block_and_methods_without_an_order_have_their_own(tmp_path: Path) -> None:
    told = [{}, {"stream": TASKS[::-1]}, {"method": "multi-qa"}]
    runs = opened(tmp_path, *told)
    assert shape(grouped(runs)) == {
        " -> ".join(TASKS): {"l4": "0"},
        " -> ".join(TASKS[::-1]): {"l4": "0"},
        "in no order": {"multi-qa": "0"},
    }
    assert shape(grouped([runs[0], runs[2]])) == {" -> ".join(TASKS): {"l4": "0", "multi-qa": "0"}}


def test_different_tasks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"different tasks.*: ag -> yelp; woz\.en"):
        grouped(opened(tmp_path, {}, {"stream": ("ag", "yelp")}))


def test_many_seeds_are_counted_rather_than_listed(tmp_path: Path) -> None:
    (block,) = grouped(opened(tmp_path, *({"seed": seed} for seed in range(6))))
    assert [group.seeds for group in block.groups] == ["6 seeds"]


@settings(max_examples=8)
@given(st.lists(st.tuples(st.sampled_from(["l4", "ewc"]), st.integers(0, 2)), min_size=1, max_size=5))
def test_every_run_is_in_one_group_and_no_group_has_a_seed_twice(told: list[tuple[str, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        runs = opened(Path(folder), *({"method": method, "seed": seed} for method, seed in told))
        (block,) = grouped(runs)
        assert sorted(run.path for run in block.runs) == sorted(run.path for run in runs)
        assert all(len({run.seed for run in group.runs}) == len(group.runs) for group in block.groups)
        assert len({group.name for group in block.groups}) == len(block.groups)
