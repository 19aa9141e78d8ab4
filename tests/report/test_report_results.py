"""Reading runs and sweeps, and refusing runs that cannot be compared."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ray_l4.errors import ConfigError, RunDirectoryError
from ray_l4.report.results import load
from ray_l4.store.atomic import write_json
from tests.report.finished_runs import TASKS, write_run, write_sweep


def test_load_keeps_runs_and_sweeps_in_order_and_groups_them_by_order(tmp_path: Path) -> None:
    turned = list(reversed(TASKS))
    trials = {"x": {"method": "lamol"}, "y": {"method": "lamol", "stream": turned}}
    sweep = write_sweep(tmp_path / "sweep", trials, "l4-table1", 0.1)
    results = load([write_run(tmp_path / "a"), sweep])
    assert [run.path.name for run in results.runs] == ["a", "x", "y"]
    assert results.tasks == TASKS
    assert results.variants() == ("l4", "lamol")
    assert {order: len(runs) for order, runs in results.by_order().items()} == {
        "woz.en -> wikisql -> cnn_dailymail": 2,
        "cnn_dailymail -> wikisql -> woz.en": 1,
    }
    assert (results.scale, results.sweeps[0].table, results.sweeps[0].title) == (0.1, "l4-table1", "by hand")


def test_an_unfinished_run_is_named_with_what_to_do(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", finished=False)
    with pytest.raises(RunDirectoryError, match=f"{folder}: .*did not finish.*ray-l4 resume {folder}"):
        load([folder])


def test_an_unfinished_trial_is_named_and_can_be_left_out(tmp_path: Path) -> None:
    trials: dict[str, dict[str, object]] = {"x": {"method": "lamol"}, "y": {"method": "l4", "finished": False}, "z": {}}
    sweep = write_sweep(tmp_path / "sweep", trials)
    with pytest.raises(RunDirectoryError, match=rf"2 of 3 trials.*not finished, such as {sweep / 'y'}\. Run the sweep"):
        load([sweep])
    results = load([sweep], partial=True)
    assert [run.path.name for run in results.runs] == ["x"]
    assert [path.name for path in results.unfinished] == ["y", "z"]


def test_a_folder_that_is_neither_run_nor_sweep(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="not a run directory"):
        load([tmp_path])


@pytest.mark.parametrize("record", [{}, {"title": "t", "scale": "much", "table": None, "trials": []}, {"trials": 3}])
def test_a_damaged_sweep_record(tmp_path: Path, record: dict[str, object]) -> None:
    (tmp_path / "sweep.json").write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(RunDirectoryError, match=r"sweep\.json: (not the record of a sweep|damaged, .* no .trials.)"):
        load([tmp_path])


def test_runs_of_different_streams_name_the_folders(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / "a"), write_run(tmp_path / "b", "lamol", stream=("ag", "yelp"))]
    with pytest.raises(ConfigError, match=rf"different tasks.*ag, yelp \(such as {folders[1]}\)"):
        load(folders)


def test_the_same_seed_twice_names_both_folders(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / "a"), write_run(tmp_path / "b")]
    with pytest.raises(ConfigError, match=f"{folders[0]}; {folders[1]}"):
        load(folders)


def test_one_row_holds_one_setting(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / "a"), write_run(tmp_path / "b", seed=1, optim={"lr": 0.5})]
    with pytest.raises(ConfigError, match=r"both l4 but differ in optim\.lr: .* and 0\.5\."):
        load(folders)
    renamed = write_run(tmp_path / "c", seed=1, optim={"lr": 0.5}, variant="fast")
    assert load([folders[0], renamed]).variants() == ("l4", "fast")


def test_settings_that_change_no_number_may_differ_in_a_row(tmp_path: Path) -> None:
    other = write_run(tmp_path / "b", seed=1, checkpoint={"keep": "last"}, data={"raw": "/elsewhere"})
    assert len(load([write_run(tmp_path / "a"), other]).runs) == 2


def test_another_order_of_the_stream_is_no_other_setting(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / "a", "multi-qa"), write_run(tmp_path / "b", "multi-qa", stream=TASKS[::-1])]
    assert len(load(folders).runs) == 2


def test_sweeps_of_two_scales_cannot_stand_together(tmp_path: Path) -> None:
    first = write_sweep(tmp_path / "a", {"x": {"method": "lamol"}}, scale=0.1)
    second = write_sweep(tmp_path / "b", {"x": {"method": "l4"}}, scale=0.2)
    with pytest.raises(ConfigError, match=r"scales 0\.1, 0\.2"):
        load([first, second])


def test_runs_of_a_sweep_say_their_scale_themselves(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / "a", "lamol"), write_run(tmp_path / "b", "l4")]
    assert load(folders).scale is None
    write_json(folders[0] / "manifest.json", {"command": "by hand", "scale": 0.1})
    assert load(folders[:1]).scale == 0.1
    with pytest.raises(ConfigError, match=r"the runs ran at scales 0\.1, 1\.0"):
        load(folders)


def test_the_variant_to_compare_with_is_the_one_asked_for_else_that_of_all_sweeps(tmp_path: Path) -> None:
    trials = {name: {"method": name} for name in ("lamol", "l4")}
    first = write_sweep(tmp_path / "first", trials, against="lamol")
    assert [load([first], against=asked).against for asked in (None, "l4", "none")] == ["lamol", "l4", None]
    early = write_sweep(tmp_path / "early", {"x": {"method": "ewc"}})  # no such key in its record
    assert load([early]).against is None
    assert load([first, early]).against is None, "the sweeps differ"
    assert load([first, early], against="lamol").against == "lamol"
    with pytest.raises(ConfigError, match=r"--against lamoll: no run is of this variant\. Did you mean 'lamol'"):
        load([first], against="lamoll")
