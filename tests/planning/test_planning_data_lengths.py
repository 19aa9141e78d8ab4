"""The lengths that occur in a run's data, and the plans that they bound."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig

from ray_l4.config.experiment import ExperimentConfig
from ray_l4.errors import ModelError
from ray_l4.planning.batch_shape import batch_shape
from ray_l4.planning.data_lengths import DataLengths, lengths_of, read_lengths
from ray_l4.planning.plan import PlanRequest, make_plan
from ray_l4.planning.requirements import Estimator
from ray_l4.setup.setup import Setup, prepare
from ray_l4.text.batches import build_batch
from ray_l4.text.replay import PseudoExample, generated_table, parse
from ray_l4.text.tokens import sequence_lengths
from tests.learner import architectures
from tests.planning.planning_fixtures import SHAPE, experiment, profile
from tests.text import chat_fixtures as chats

GIB = 2**30
STREAM = [{"name": "mini.woz", "train": 30, "test": 6}, {"name": "mini.sql", "train": 20, "test": 6}]


def of_data(method: str = "l4", **sections: Any) -> ExperimentConfig:
    model = {"from_scratch": {**SHAPE, "positions": 4096}}
    return experiment(method, **{"stream": STREAM, "model": model, **sections})


def test_lengths_are_those_of_the_tokenised_data() -> None:
    config = of_data()
    setup, found = prepare(config), read_lengths(config)
    assert found.examples == {"mini.woz": 30, "mini.sql": 20}
    assert found.trained == 1 + max(int(sequence_lengths(table).max()) for table in setup.training.values())
    assert found.trained < 100, "although the model has 4,096 positions"
    answers = [len(row["ids"]) - row["prompt_length"] for table in setup.training.values() for row in table.to_pylist()]
    assert found.answer == max(answers)
    prompts = [len(row["ids"]) for tests in setup.tests.values() for row in tests.prompts.to_pylist()]
    assert max(prompts) < found.decoded


@pytest.mark.parametrize(
    ("method", "max_length", "expected"),
    [("l4", 300, 300), ("l4", 20, None), ("l4", None, None), ("finetune", 300, None), ("l4", 9999, 4096)],
)
def test_a_pseudo_example_may_be_longer_than_the_data(
    method: str, max_length: int | None, expected: int | None
) -> None:
    setup = prepare(of_data(method, replay={"max_length": max_length} if max_length else {}))
    plain = lengths_of(prepare(of_data("finetune")))
    found = lengths_of(setup)
    replayed = 0 if method == "finetune" else setup.replay_length(1)
    assert found.trained == (expected or max(plain.trained, replayed))
    assert found.decoded >= found.trained if expected else found.decoded >= plain.decoded


def test_demonstrations_make_sequences_and_prompts_longer() -> None:
    plain, found = read_lengths(of_data("finetune")), read_lengths(of_data("finetune", memory={"retrieve": 2}))
    setup = prepare(of_data("finetune", memory={"retrieve": 2}))
    assert found.trained > 2 * plain.trained and found.answer == plain.answer
    prompts = [sequence_lengths(tests.prompts).max() for stage in (0, 1) for tests in setup.tests_of(stage).values()]
    assert found.decoded > max(prompts) > plain.decoded


def widest(setup: Setup, *tables: pa.Table) -> int:
    """Return the longest row of the batches that hold all examples of tables with both heads."""
    return max(
        build_batch(table, np.arange(table.num_rows), ("qa", "lm"), setup.tokenizer, 1.0).input_ids_RT.shape[1]
        for table in tables
    )


def of_chat(folder: Path, method: str) -> ExperimentConfig:
    """A run on an instruct model whose last task has by far the longest examples."""
    stream = []
    for task, words in zip(chats.TASKS, (2, 40), strict=True):
        (folder / task).mkdir()
        for split in ("train", "test"):
            record = {"prompt": f"Translate cheese{' cheese' * words}", "completion": "town"}
            (folder / task / f"{split}.jsonl").write_text(json.dumps(record))
        stream.append({"name": task, "path": str(folder / task), "metric": "em"})
    chats.save_instruct(folder / "model", steps=0)
    return experiment(method, stream=stream, model={"name": str(folder / "model")})


@pytest.mark.parametrize("chat", [False, True], ids=["plain", "chat"])
def test_the_longest_row_is_that_of_real_batches(tmp_path: Path, chat: bool) -> None:
    setup = prepare(of_chat(tmp_path, "finetune") if chat else of_data("finetune"))
    assert lengths_of(setup).trained == widest(setup, *setup.training.values())


@pytest.mark.parametrize("chat", [False, True], ids=["plain", "chat"])
def test_a_pseudo_example_that_fills_its_length_has_room(tmp_path: Path, chat: bool) -> None:
    config = of_chat(tmp_path, "l4") if chat else of_data(replay={"max_length": 300})
    setup, tokenizer = prepare(config), prepare(config).tokenizer
    first = setup.training[setup.tasks[0]]
    ids = [*first["ids"][0].as_py()[: first["prompt_length"][0].as_py()]]
    longest = setup.replay_length(1)
    generated = [tokenizer.gen_of(setup.tasks[0]), *ids, *tokenizer.encode("a" * 600)][:longest]
    parsed = parse(generated, tokenizer)
    assert isinstance(parsed, PseudoExample) and len(generated) == longest
    found = lengths_of(setup)
    row = widest(setup, generated_table([parsed], setup.tasks[:1], tokenizer, 1))
    assert found.trained == max(row, widest(setup, *setup.training.values()))
    assert found.decoded >= longest


def test_the_last_task_is_never_replayed(tmp_path: Path) -> None:
    """Its examples are far longer than those of the task before it, and than test prompts with their answers."""
    setup = prepare(of_chat(tmp_path, "l4"))
    shorter = setup.replay_length(1)
    assert shorter == setup.longest_sequences["capitals"] < setup.longest_sequences["polite"] - 30
    tests = {task: replace(tests, prompts=setup.tests["capitals"].prompts) for task, tests in setup.tests.items()}
    (tests_length,) = {len(row) for row in setup.tests["capitals"].prompts["ids"].to_pylist()}
    answered = tests_length + max(each.max_new_tokens for each in tests.values())
    assert lengths_of(replace(setup, tests=tests)).decoded == max(shorter, answered)


def test_the_data_bounds_the_batch_and_gives_the_automatic_size() -> None:
    data = DataLengths(trained=40, answer=9, decoded=44, examples={"mine": 30_000})
    config = of_data(
        "finetune", stream=[{"name": "mine", "path": "/x", "metric": "em"}], training={"batch_size": "auto"}
    )
    batch = batch_shape(config, profile(), data=data)
    assert (batch.examples, batch.length, batch.answer, batch.decoded) == (20, 40, 9, 44)
    assert batch.worst_case and batch.of_data
    given = batch_shape(config, profile(), tokens=100, data=data)
    assert given.length == 100 and not given.worst_case and not given.of_data


@given(st.integers(1, 9000), st.integers(1, 9000))
def test_a_batch_of_the_data_has_room_for_prompt_and_answer(trained: int, answer: int) -> None:
    data = DataLengths(trained, answer, trained, {"mini.woz": 9})
    batch = batch_shape(of_data(), profile(), data=data)
    assert 1 <= batch.answer <= batch.length - 2 <= 4094


def test_a_model_with_very_many_positions_is_planned_in_seconds(tmp_path: Path) -> None:
    """Without data, every position counts: as many chunks of logits as that would take hours."""
    LlamaConfig(**architectures.SIZES | {"max_position_embeddings": 131_072, "vocab_size": 50_000}).save_pretrained(
        tmp_path
    )
    began = time.monotonic()
    request = PlanRequest(experiment(model={"name": str(tmp_path)}, training={"batch_size": 2}), 10**6 * GIB)
    made = make_plan(request, profile(), Estimator())
    assert made.requirements.batch.length == 131_072
    assert time.monotonic() - began < 60


def test_profiles_of_equal_shape_share_one_simulation() -> None:
    told: list[str] = []
    estimator = Estimator(told.append)
    for ahead in (1, 2, 3):
        make_plan(PlanRequest(experiment(), 80 * GIB), profile(exchange={"steps_ahead": ahead}), estimator)
    assert len(told) == 2, "a step of one peer, which stands for both, and an evaluator"
    assert "4 examples" in told[0] and "48 tokens" in told[0] and "evaluator" in told[1]


def test_data_that_cannot_be_read_is_an_error_here(tmp_path: Path) -> None:
    architectures.GPT2.save_pretrained(tmp_path)
    with pytest.raises(ModelError):
        read_lengths(experiment(model={"name": str(tmp_path)}))
