"""The table of tasks, ``load`` and the sampling of subsets."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_l4.config.experiment import DataConfig
from ray_l4.config.stream import TaskConfig
from ray_l4.errors import ConfigError, DataError
from ray_l4.metrics.registry import METRICS
from ray_l4.tasks.registry import READERS, TASKS, load, metric_of
from ray_l4.tasks.sampling import count_of, dialogue_of, subset

Write = Callable[..., Path]


def test_the_table_has_the_papers_sizes_and_metrics() -> None:
    facts = {name: (info.train, info.test, info.metric) for name, info in TASKS.items()}
    assert facts["woz.en"] == (2536, 1646, "joint_goal_em")
    assert facts["wikisql"] == (6525, 15878, "lfem")
    assert facts["cnn_dailymail"] == (6604, 2250, "avg_rouge")
    assert facts["e2enlg"] == (6000, 2000, "avg_rouge")
    assert facts["rnnlg.rest"] == (6228, 1039, "avg_rouge")
    assert facts["rnnlg.hotel"] == (6446, 1075, "avg_rouge")
    assert facts["rnnlg.tv"] == (8442, 1407, "avg_rouge")
    assert facts["rnnlg.laptop"] == (7944, 2649, "avg_rouge")
    assert {facts[name] for name in ("ag", "yelp", "amazon", "dbpedia", "yahoo")} == {(115000, 7600, "em")}


def test_every_task_has_a_reader_and_a_metric_that_exist() -> None:
    for name, info in TASKS.items():
        assert info.name == name
        assert info.family in READERS
        assert info.metric in METRICS
        assert info.description


def test_an_unknown_task_names_the_nearest(data: DataConfig) -> None:
    for ask in (lambda task: load(task, "train", data), metric_of):
        with pytest.raises(
            ConfigError, match=r"Unknown task 'woz.eng'. Did you mean 'woz.en'\? .*give the task a path"
        ):
            ask(TaskConfig(name="woz.eng"))


def test_the_metric_is_the_configured_one_or_the_tasks_own(tmp_path: Path) -> None:
    assert metric_of(TaskConfig(name="wikisql")) == "lfem"
    assert metric_of(TaskConfig(name="wikisql", metric="em")) == "em"
    assert metric_of(TaskConfig(name="mine", path=tmp_path, metric="nf1")) == "nf1"
    with pytest.raises(ConfigError, match=r"set its metric to one of avg_rouge, em, joint_goal_em"):
        metric_of(TaskConfig(name="mine", path=tmp_path))
    with pytest.raises(ConfigError, match=r"Task 'mine': unknown metric 'rouge'. Did you mean 'avg_rouge'"):
        metric_of(TaskConfig(name="mine", path=tmp_path, metric="rouge"))


def test_raw_data_is_found_by_configuration_or_environment(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("root/raw/rnnlg/tv/test.json", json.dumps([["act", "a", "b"]]))
    task = TaskConfig(name="rnnlg.tv")
    monkeypatch.delenv("RAY_L4_DATA", raising=False)
    with pytest.raises(ConfigError, match=r"neither data.raw nor the environment variable RAY_L4_DATA"):
        load(task, "test", DataConfig())
    monkeypatch.setenv("RAY_L4_DATA", str(tmp_path / "root"))
    assert load(task, "test", DataConfig()).num_rows == 1


def test_counts(caplog: pytest.LogCaptureFixture) -> None:
    assert count_of(3, 5, 10, "x") == 3
    assert count_of("all", 5, 10, "x") == 10
    assert count_of("paper", 5, 10, "x") == 5
    assert count_of("paper", None, 10, "x") == 10  # a custom task
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        assert count_of("paper", 50, 10, "tv (train)") == 10
    assert "tv (train): the papers use 50 examples, the data has 10; using all of them." in caplog.text
    with pytest.raises(DataError, match=r"tv \(train\): 11 examples requested, but the data has 10"):
        count_of(11, None, 10, "tv (train)")


def table_of(sample_ids: list[str]) -> pa.Table:
    return pa.table({"sample_id": sample_ids})


def drawn(sample_ids: list[str], count: int, seed: int = 0, by_dialogue: bool = False, **names: str) -> list[str]:
    stream = {"task": "t", "split": "train", **names}
    return subset(table_of(sample_ids), count, seed, by_dialogue=by_dialogue, **stream).column("sample_id").to_pylist()


@given(st.integers(1, 60), st.data(), st.integers(0, 2**31))
def test_a_subset_has_the_size_keeps_the_order_and_repeats_nothing(size: int, draw: st.DataObject, seed: int) -> None:
    count = draw.draw(st.integers(1, size))
    rows = [int(name) for name in drawn([str(n) for n in range(size)], count, seed)]
    assert len(rows) == count
    assert rows == sorted(set(rows))


def test_a_subset_depends_on_seed_task_and_split_alone() -> None:
    ids = [str(n) for n in range(200)]
    first = drawn(ids, 50)
    assert first == drawn(ids, 50)
    others = [drawn(ids, 50, seed=1), drawn(ids, 50, task="u"), drawn(ids, 50, split="test")]
    assert all(first != other for other in others)


def test_a_subset_of_everything_is_everything() -> None:
    assert drawn(["b", "a"], 2) == ["b", "a"]


@given(st.lists(st.integers(1, 6), min_size=1, max_size=15), st.data(), st.integers(0, 2**31))
def test_dialogues_stay_whole_but_for_the_end_of_one(lengths: list[int], draw: st.DataObject, seed: int) -> None:
    ids = [f"en_{dialogue}_{turn}" for dialogue, length in enumerate(lengths) for turn in range(length)]
    count = draw.draw(st.integers(1, len(ids)))
    kept = drawn(ids, count, seed, by_dialogue=True)
    assert len(kept) == count
    assert kept == [name for name in ids if name in set(kept)]
    turns = {
        dialogue: [name for name in kept if dialogue_of(name) == f"en_{dialogue}"] for dialogue in range(len(lengths))
    }
    for dialogue, names in turns.items():
        assert names == [f"en_{dialogue}_{turn}" for turn in range(len(names))]  # the first turns of the dialogue
    cut = [dialogue for dialogue, names in turns.items() if 0 < len(names) < lengths[dialogue]]
    assert len(cut) <= 1


def test_the_dialogue_of_an_id() -> None:
    assert dialogue_of("en_12_3") == "en_12"
    assert dialogue_of("5f2a") == "5f2a"  # a dialogue of one turn, as for the metric


def dialogues(count: int) -> list[dict[str, Any]]:
    turn = {"transcript": "hi", "system_acts": [], "belief_state": []}
    return [{"dialogue": [turn] * 3} for _ in range(count)]


def test_load_samples_dialogues_for_the_dialogue_metric_only(write: Write, data: DataConfig) -> None:
    write("woz/woz_train_en.json", dialogues(40))
    ids = load(TaskConfig(name="woz.en", train=30), "train", data).column("sample_id").to_pylist()
    assert len(ids) == 30
    assert len({dialogue_of(name) for name in ids}) == 10
    ids = load(TaskConfig(name="woz.en", train=30, metric="em"), "train", data).column("sample_id").to_pylist()
    assert len({dialogue_of(name) for name in ids}) > 10


def test_a_dev_split_is_taken_whole(write: Write, data: DataConfig) -> None:
    write("woz/woz_validate_en.json", dialogues(4))
    assert load(TaskConfig(name="woz.en", train=1, test=1), "dev", data).num_rows == 12


def test_more_than_there_is_and_fewer_than_the_papers(
    write: Write, data: DataConfig, caplog: pytest.LogCaptureFixture
) -> None:
    write("woz/woz_train_en.json", dialogues(4))
    with pytest.raises(DataError, match=r"woz.en \(train\): 13 examples requested, but the data has 12"):
        load(TaskConfig(name="woz.en", train=13), "train", data)
    with caplog.at_level(logging.WARNING):
        assert load(TaskConfig(name="woz.en"), "train", data).num_rows == 12
    assert "the papers use 2536 examples, the data has 12" in caplog.text


def test_a_dialogue_metric_without_turn_ids_is_reported(
    write: Write, tmp_path: Path, data: DataConfig, caplog: pytest.LogCaptureFixture
) -> None:
    write("own/test.csv", "context,question,answer\nc,q,none\n")
    task = TaskConfig(name="mine", path=tmp_path / "own", metric="joint_goal_em")
    with caplog.at_level(logging.WARNING):
        load(task, "test", data)
    assert "no sample id has the form <dialogue>_<turn>" in caplog.text


def test_sampling_draws_every_example_equally_often() -> None:
    ids = [str(n) for n in range(10)]
    counts = np.zeros(10)
    for seed in range(400):
        for name in drawn(ids, 3, seed):
            counts[int(name)] += 1
    assert counts.min() > 80  # 120 expected each
    assert counts.max() < 160
