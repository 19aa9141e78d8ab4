"""Streams in which a task comes back, and settings of single stages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_l4.config.experiment import ExperimentConfig
from ray_l4.config.stream_items import stream_items
from ray_l4.config.stream_names import distinct, item_names
from ray_l4.errors import ConfigError


def experiment(*stream: Any, **sections: Any) -> ExperimentConfig:
    items = [{"name": item} if isinstance(item, str) else item for item in stream]
    return ExperimentConfig.model_validate({"stream": items, "model": {"name": "gpt2"}} | sections)


def test_items_are_named_after_their_tasks() -> None:
    assert item_names(["a", "b", "a", "a", "b"]) == ["a", "b", "a (2)", "a (3)", "b (2)"]
    assert distinct(["a", "b", "a", "c", "b"]) == ("a", "b", "c")


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=9), st.lists(st.sampled_from("abc"), max_size=5))
def test_names_and_tasks_do_not_change_when_a_stream_goes_on(begun: list[str], more: list[str]) -> None:
    assert item_names([*begun, *more])[: len(begun)] == item_names(begun)
    assert distinct([*begun, *more])[: len(distinct(begun))] == distinct(begun)
    assert len(set(item_names(begun))) == len(begun)


def test_a_task_that_comes_back_has_the_metric_the_question_and_the_columns_of_its_first_item() -> None:
    columns = {"context": "text"}
    first = {"name": "a", "path": "one", "metric": "em", "question": "what ?", "columns": columns, "train": 5}
    again = {"name": "a", "path": "two"}
    items = experiment(first, "mini.sql", again, {**again, "question": "why ?", "train": 3}).items
    assert list(items) == ["a", "mini.sql", "a (2)", "a (3)"]
    assert items["a"].train == 5 and items["a (2)"].train == "all", "the number is that of the first item alone"
    assert (items["a (2)"].metric, items["a (2)"].question, items["a (2)"].columns.context) == ("em", "what ?", "text")
    assert items["a (2)"].path == Path("two")
    assert (items["a (3)"].question, items["a (3)"].train) == ("why ?", 3)
    assert experiment(first, again).of_tasks["a"].path == Path("one")


def test_settings_of_a_stage_hold_there_alone() -> None:
    own = {
        "training": {"epochs": 2, "batch_size": "auto"},
        "optim": {"lr": 0.5},
        "distillation": {"weight": 0.0},
        "replay": {"ratio": 3.0},
    }
    config = experiment("a", {"name": "b", "settings": own}, {"name": "c", "settings": {"optim": {"lr": 0.25}}})
    common, b, c = (config.at_stage(stage) for stage in range(3))
    assert common is config and config.at_stage(7) is config
    assert (b.training.epochs, b.training.batch_size, b.optim.lr) == (2, "auto", 0.5)
    assert (b.distillation.weight, b.replay.ratio) == (0.0, 3.0)
    assert b.training.lm_weight == config.training.lm_weight and b.stream == config.stream
    assert (c.training, c.optim.lr, c.replay) == (config.training, 0.25, config.replay)
    assert [config.epochs_of(stage) for stage in range(3)] == [9, 2, 9]


def test_items_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "more.yaml").write_text("stream:\n  - mini.sql\n  - {name: own, path: data, metric: em}\n")
    given = ["mini.woz", "new=somewhere", "known=elsewhere", "sub/more.yaml"]
    items = stream_items(given, ["training.epochs=3", "optim.lr=1e-3"], "nf1", known=("known",))
    assert [item.name for item in items] == ["mini.woz", "new", "known", "mini.sql", "own"]
    places = [item.path for item in items]
    assert places == [None, tmp_path / "somewhere", tmp_path / "elsewhere", None, tmp_path / "sub" / "data"]
    assert [item.metric for item in items] == [None, "nf1", None, None, "em"], "a task that is known has its metric"
    assert {item.settings.training.epochs for item in items} == {3}
    assert {item.settings.optim.lr for item in items} == {1e-3}


@pytest.mark.parametrize(
    ("items", "overrides", "message"),
    [
        (["x.yaml"], [], "x.yaml: no such file"),
        (["mini.sql"], ["model.name=x"], "model.name is the same in all stages of a run; those that may differ are"),
        (["mini.sql"], ["training.epochs"], "expected key=value"),
        (["mini.sql"], ["training.epochs=0"], "training.epochs"),
        (["a|b"], [], "visible characters"),
        (["fragment.yaml"], [], "fragment.yaml: has 'method' beside 'stream'"),
    ],
)
def test_what_cannot_be_an_item_is_named(
    items: list[str], overrides: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fragment.yaml").write_text("stream: [mini.sql]\nmethod: l4\n")
    with pytest.raises(ConfigError) as raised:
        stream_items(items, overrides)
    assert message in str(raised.value)


def test_settings_of_the_command_line_come_before_those_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "more.yaml"
    path.write_text("stream: [{name: mini.sql, settings: {training: {epochs: 5, batch_size: 2}}}]\n")
    (item,) = stream_items([str(path)], ["training.epochs=3"])
    assert (item.settings.training.epochs, item.settings.training.batch_size) == (3, 2)
