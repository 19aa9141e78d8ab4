"""What the examples of a stage are shown: those of items learned up to it, and nothing of later ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_l4.config.experiment import ExperimentConfig
from ray_l4.errors import ConfigError, RunDirectoryError
from ray_l4.methods import get_method, resolved, stages_of
from ray_l4.setup.begun import begun, record_examples
from ray_l4.setup.memories import StageMemories, memory_of, remembered_items
from ray_l4.setup.setup import Setup, prepare, prepared
from ray_l4.store.checkpoints import Checkpoint
from ray_l4.text.memory import DEMONSTRATIONS, remembered
from tests.learner import learner_fixtures as small
from tests.run import run_fixtures as runs

STREAM = ("a", "b", "c", "a")


def experiment(method: str = "finetune", count: int = 2, **changes: Any) -> ExperimentConfig:
    """Three embedded tasks, and a model with room for some demonstrations."""
    sections: dict[str, Any] = {
        "method": method,
        "stream": [{"name": name, "train": 12, "test": 5} for name in ("mini.woz", "mini.sql", "mini.rest")],
        "model": {"from_scratch": {"layers": 1, "width": 32, "heads": 2, "positions": 400, "vocabulary": 400}},
        "memory": {"retrieve": count},
    }
    return ExperimentConfig.model_validate(sections | changes)


def shown_items(setup: Setup, stage: int) -> dict[str, set[str]]:
    """Task -> the items of which the test examples are shown examples in a stage."""
    return {
        task: {name.partition("/")[0] for names in tests.shown for name in names}
        for task, tests in setup.tests_of(stage).items()
    }


def test_tests_are_shown_the_items_up_to_the_stage() -> None:
    setup, texts = prepared(experiment())
    learned = ["mini.woz", "mini.sql", "mini.rest"]
    for stage in range(3):
        for items in shown_items(setup, stage).values():
            assert items and items <= set(learned[: stage + 1])
    assert shown_items(setup, 2)["mini.woz"] == {"mini.woz"}, "its own task is the most similar"
    for stage in range(3):
        for task, tests in setup.tests_of(stage).items():
            assert list(tests.items) == list(setup.tests[task].items), "answers are scored alike in all stages"
            assert tests.max_new_tokens == setup.tests[task].max_new_tokens
    assert {item: table.num_rows for item, table in texts.memory.items()} == dict.fromkeys(learned, 12)


def test_training_examples_begin_with_what_they_are_shown() -> None:
    setup, plain = prepare(experiment()), prepare(experiment(count=0))
    for item, table in setup.training.items():
        alone = plain.training[item]
        for own, bare in zip(table.to_pylist(), alone.to_pylist(), strict=True):
            assert own["ids"][-len(bare["ids"]) :] == bare["ids"] and len(own["ids"]) > len(bare["ids"])
            assert own["sample_id"] == bare["sample_id"]


def test_without_retrieval_nothing_is_shown_and_nothing_is_kept() -> None:
    setup, texts = prepared(experiment(count=0))
    assert setup.shown_tests == () and texts.memory == {}
    assert all(setup.tests_of(stage) is setup.tests for stage in range(3))
    assert all(tests.shown == () for tests in setup.tests.values())


def test_what_models_of_a_single_task_and_of_all_tasks_are_shown() -> None:
    names = ["mini.woz", "mini.sql", "mini.rest"]
    assert [remembered_items(experiment("single-qa"), stage) for stage in range(3)] == [[name] for name in names]
    assert remembered_items(experiment("multi-qa"), 0) == names
    alone = prepare(experiment("single-qa"))
    assert [shown_items(alone, stage) for stage in range(3)] == [{name: {name}} for name in names]


@pytest.mark.parametrize("method", ["l2kd-word", "multi-seq-kd"])
def test_teachers_are_scored_on_the_prompts_of_the_stage_that_learns_their_item(method: str) -> None:
    setup = prepare(experiment(method))
    teachers = setup.of_teachers()
    joint = get_method(method).kind.joint
    for stage, task in enumerate(["mini.woz", "mini.sql", "mini.rest"]):
        own = teachers.tests_of(stage)[task]
        assert own is setup.tests_of(0 if joint else stage)[task]


def test_validation_examples_are_shown_training_examples() -> None:
    setup = prepare(experiment(evaluation={"validation": 0.25}))
    plain = prepare(experiment(count=0, evaluation={"validation": 0.25}))
    for item, table in setup.validation.items():
        pairs = zip(
            table["prompt_length"].to_pylist(), plain.validation[item]["prompt_length"].to_pylist(), strict=True
        )
        assert all(mine > bare for mine, bare in pairs)


TEXTS = st.lists(
    st.lists(st.sampled_from(small.WORDS[:4]), min_size=1, max_size=3).map(" ".join), min_size=1, max_size=5
)


@settings(deadline=None)
@given(contexts=st.lists(TEXTS, min_size=4, max_size=4), count=st.integers(1, 3), alone=st.booleans())
def test_no_item_of_a_later_stage_is_ever_shown(contexts: list[list[str]], count: int, alone: bool) -> None:
    config = ExperimentConfig.model_validate(
        {
            "method": "single-qa" if alone else "finetune",
            "stream": [{"name": name, "path": name, "metric": "em"} for name in STREAM],
            "model": {"name": "any"},
            "memory": {"retrieve": count},
        }
    )
    items = list(config.items)
    tables = {item: _table(item, own) for item, own in zip(items, contexts, strict=True)}
    memories = StageMemories(config, {item: remembered(table) for item, table in tables.items()})
    for stage, own in enumerate(stages_of(config)):
        allowed = own.items if alone else items[: stage + 1]
        for item, table in tables.items():
            for row in memories.of_stage(stage).show(table).to_pylist():
                shown = [each["name"] for each in row[DEMONSTRATIONS]]
                assert {name.partition("/")[0] for name in shown} <= set(allowed)
                assert f"{item}/{row['sample_id']}" not in shown
    assert memories.of_item("a (2)") is memories.of_stage(3)


def _table(item: str, contexts: list[str]) -> pa.Table:
    rows = small.examples(item, len(contexts)).to_pylist()
    return pa.Table.from_pylist([row | {"context": text} for row, text in zip(rows, contexts, strict=True)])


def test_retrieve_is_a_frozen_model_with_four_examples() -> None:
    config = experiment("retrieve").model_dump(exclude={"memory"})
    found = resolved(ExperimentConfig.model_validate({**config, "training": {}}))
    assert (found.memory.retrieve, found.training.epochs) == (4, 1)
    assert not get_method("retrieve").learns
    assert resolved(experiment("retrieve", 0)).memory.retrieve == 0, "as it was set"


def test_a_run_that_goes_on_has_the_texts_of_what_it_learned(tmp_path: Path) -> None:
    config = experiment()
    setup, run = runs.new_run(config, runs.cluster("in_process"), tmp_path / "run")
    _, texts = prepared(config)
    record_examples(run, texts, {})
    known = begun(run, 2)
    assert known.memory.keys() == texts.memory.keys()
    again, read = prepared(setup.experiment, begun=known)
    assert list(again.training) == ["mini.rest"], "the data of the others is not needed"
    assert read.memory.keys() == texts.memory.keys()
    assert again.training["mini.rest"].equals(setup.training["mini.rest"])
    for stage in range(3):
        for task, tests in setup.tests_of(stage).items():
            assert again.tests_of(stage)[task].prompts.equals(tests.prompts)
            assert again.tests_of(stage)[task].shown == tests.shown


def test_a_checkpoint_has_the_memory_of_its_run_up_to_its_stage(tmp_path: Path) -> None:
    config = experiment()
    _, run = runs.new_run(config, runs.cluster("in_process"), tmp_path / "run")
    place = Checkpoint(1, 1, 0, run)
    with pytest.raises(RunDirectoryError, match=r"mini\.woz\.parquet: is missing, but memory\.retrieve: 2"):
        memory_of(config, place, "it")
    record_examples(run, prepared(config)[1], {})
    found = memory_of(config, place, "it")
    assert found is not None and len(found) == 24
    assert memory_of(experiment(count=0), place, "it") is None
    with pytest.raises(ConfigError, match=r"memory\.retrieve: 2, but the model belongs to no run"):
        memory_of(config, None, "the model")
