"""Where validation examples come from: a share of the training examples, a dev split, a folder or a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_l4.config.experiment import DataConfig
from ray_l4.config.stream import Splits, TaskConfig
from ray_l4.errors import ConfigError, DataError
from ray_l4.tasks.registry import load
from ray_l4.tasks.validation import check_validation, held_out, with_validation

WOZ = TaskConfig(name="mini.woz", train=40)
TRAINING = load(WOZ, "train", DataConfig())


def ids(table: Any) -> list[str]:
    return table["sample_id"].to_pylist()


@given(st.floats(0.001, 0.999), st.integers(0, 5), st.integers(2, 40), st.sampled_from(["em", "joint_goal_em"]))
def test_a_share_is_held_out_in_the_order_of_the_file(fraction: float, seed: int, size: int, metric: str) -> None:
    task, table = WOZ.model_copy(update={"metric": metric}), TRAINING.slice(0, size)
    left, held = held_out(table, fraction, seed, task)
    assert held.num_rows == min(max(1, round(fraction * size)), size - 1)
    assert sorted(ids(left) + ids(held)) == sorted(ids(table)) and not set(ids(left)) & set(ids(held))
    assert [name for name in ids(table) if name in set(ids(held))] == ids(held)
    assert [name for name in ids(table) if name in set(ids(left))] == ids(left)
    again = held_out(table, fraction, seed, task)
    assert (ids(again[0]), ids(again[1])) == (ids(left), ids(held)), "by the seed alone"


def test_another_seed_or_task_holds_out_others() -> None:
    found = [
        tuple(ids(held_out(TRAINING, 0.3, seed, WOZ.model_copy(update={"name": name}))[1]))
        for seed, name in ((0, "mini.woz"), (1, "mini.woz"), (0, "woz.en"))
    ]
    assert len(set(found)) == 3


def test_one_example_cannot_be_divided() -> None:
    with pytest.raises(DataError, match=r"task 'mini.woz' has 1 training example"):
        held_out(TRAINING.slice(0, 1), 0.5, 0, WOZ)


def test_the_dev_split_of_a_task_is_read_whole() -> None:
    left, held = with_validation(WOZ, TRAINING, "dev", DataConfig(), alone=False)
    assert left is TRAINING and held.equals(load(WOZ, "dev", DataConfig()))


def write(path: Path, *answers: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    records = [{"context": f"c{number}", "question": "q", "answer": answer} for number, answer in enumerate(answers)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


OWN = "own/dev.jsonl"


@pytest.mark.parametrize(
    ("file", "asked", "alone"),
    [
        ("others/mine/dev.jsonl", "others", False),
        ("others/mine/dev.jsonl", "others", True),
        ("others/dev.jsonl", "others", True),
        ("others/held.jsonl", "others/held.jsonl", True),
        (OWN, "dev", False),
    ],
)
def test_a_path_is_a_folder_of_tasks_or_that_of_the_only_one(
    file: str, asked: str, alone: bool, tmp_path: Path
) -> None:
    write(tmp_path / file, "x", "y")
    task = TaskConfig(name="mine", path=tmp_path / "own", metric="em")
    where = asked if asked == "dev" else tmp_path / asked
    others = [] if alone else [WOZ]
    if isinstance(where, Path) and not alone:
        write(where / "mini.woz" / "dev.jsonl", "z")
    check_validation([task, *others], where, alone=not others)
    _, held = with_validation(task, TRAINING, where, DataConfig(), alone=alone)
    assert held["answer"].to_pylist() == ["x", "y"]


@pytest.mark.parametrize(
    "own",
    [
        {"dataset": "owner/name", "splits": Splits(dev="validation")},
        {"path": Path("own"), "splits": Splits(train="learn", dev="validation")},
    ],
)
def test_a_path_replaces_the_tasks_own_place_and_its_names_of_splits(own: dict[str, Any], tmp_path: Path) -> None:
    """Where the test split of a data set is its validation split, the examples are not those of the path's files."""
    write(tmp_path / "val" / "dev.jsonl", "x", "y")
    task = TaskConfig(name="mine", metric="em", **own)
    _, held = with_validation(task, TRAINING, tmp_path / "val", DataConfig(), alone=True)
    assert held["answer"].to_pylist() == ["x", "y"]


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    task = TaskConfig(name="mine", path=tmp_path, metric="em")
    with pytest.raises(ConfigError, match=r"evaluation.validation: no file or folder .*nowhere.*such as 0.1"):
        check_validation([task], tmp_path / "nowhere", alone=True)
    file = write(tmp_path / "held.jsonl", "x")
    with pytest.raises(ConfigError, match=r"no folder .*held.jsonl.mine; with several tasks"):
        check_validation([task, WOZ], file, alone=False)
    with pytest.raises(DataError, match="no dev data in"):
        with_validation(task, TRAINING, "dev", DataConfig(), alone=False)
