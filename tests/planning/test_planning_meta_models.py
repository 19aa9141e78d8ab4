"""Models built from configuration alone have exactly the parameters of models with weights."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from ray_l4.config.model import LoraConfig, ModelConfig
from ray_l4.errors import ModelError
from ray_l4.learner.adapters import add_adapters
from ray_l4.learner.model_config import sequence_limit
from ray_l4.learner.models import build_model
from ray_l4.learner.position_logits import logits_are_one_product
from ray_l4.learner.pretrained import grow
from ray_l4.planning.meta_models import (
    Vocabulary,
    count_parameters,
    head_is_one_product,
    meta_model,
    vocabulary_of,
)
from ray_l4.text.tokenizer import TaskTokenizer
from tests.learner import architectures
from tests.planning.planning_fixtures import cpu_trace, experiment
from tests.text import chat_fixtures as chats

NAMES = ("gpt2", "llama", "neox", "granite", "cohere", "gemma2")
VOCABULARY = Vocabulary(architectures.VOCABULARY, 3)


def config_of(name: str) -> Any:
    """Return a copy, because a model that grows changes its configuration."""
    return copy.deepcopy(getattr(architectures, name.upper()))


def planned_model(config: ModelConfig, vocabulary: Vocabulary = VOCABULARY) -> Any:
    with FakeTensorMode(allow_non_fake_inputs=True), cpu_trace():
        return meta_model(config, vocabulary)


def numbers(model: Any) -> tuple[int, int]:
    """Return the numbers of all parameters and of the trainable ones."""
    parameters = list(model.parameters())
    return sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)


@pytest.mark.parametrize("lora", [None, {"rank": 3}], ids=["whole", "lora"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "neox"])
def test_a_named_model_needs_no_weights(tmp_path: Path, name: str, lora: dict[str, int] | None) -> None:
    config_of(name).save_pretrained(tmp_path)
    planned = planned_model(ModelConfig(name=str(tmp_path), lora=lora))
    assert all(isinstance(p, FakeTensor) for p in planned.parameters())
    real = architectures.untrained(config_of(name))
    drawn = grow(real, VOCABULARY.size)
    if lora:
        add_adapters(real, LoraConfig(**lora), "base", drawn)
    counted = count_parameters(planned)
    assert (counted.total, counted.trainable) == numbers(real)
    assert (counted.trainable < counted.total) is bool(lora)


@pytest.mark.parametrize("lora", [None, {"rank": 3}], ids=["whole", "lora"])
def test_weights_are_planned_in_their_own_type(tmp_path: Path, lora: dict[str, int] | None) -> None:
    config_of("llama").save_pretrained(tmp_path)
    sizes = {}
    for dtype in ("float32", "bfloat16"):
        planned = planned_model(ModelConfig.model_validate({"name": str(tmp_path), "lora": lora, "dtype": dtype}))
        sizes[dtype] = dict.fromkeys((True, False), 0)
        for parameter in planned.parameters():
            sizes[dtype][parameter.requires_grad] += parameter.nbytes
    frozen = lora is not None
    assert sizes["bfloat16"][not frozen] == sizes["float32"][not frozen] / 2
    if frozen:
        assert sizes["bfloat16"][True] == sizes["float32"][True], "adapters stay float32"


def test_a_model_from_scratch_has_the_parameters_it_will_have() -> None:
    config = experiment().model
    vocabulary = vocabulary_of(experiment())
    real: Any = build_model(config, vocabulary, 0)  # type: ignore[arg-type]
    counted = count_parameters(planned_model(config, vocabulary))
    assert (counted.total, counted.trainable) == numbers(real)
    block = sum(p.numel() for p in real.transformer.h[0].parameters())
    assert counted.largest_block == block
    assert counted.outside_blocks == counted.total - block


def test_the_vocabulary_is_the_largest_that_the_stream_can_give() -> None:
    config = experiment(model={"from_scratch": {"vocabulary": 300}, "spare_task_tokens": 5})
    texts = [f"word{index} and more words" for index in range(400)]
    real = TaskTokenizer.trained(texts, 300, ["mini.woz"], 5)
    planned = vocabulary_of(config)
    assert planned.size == real.size, "there is enough text"
    assert len(planned.task_tokens) == len(real.task_tokens)
    assert len({planned.ans, planned.pad, planned.unk, *planned.task_tokens}) == 3 + 6


def test_the_vocabulary_has_room_for_the_end_of_chat_examples(tmp_path: Path) -> None:
    chats.save_instruct(tmp_path, steps=0)
    config = experiment(model={"name": str(tmp_path), "spare_task_tokens": 5})
    planned, real = vocabulary_of(config), TaskTokenizer.pretrained(tmp_path, ["mini.woz"], 5)
    assert real.chat is not None
    assert planned.size == real.size
    assert len(planned.task_tokens) == len(real.task_tokens)
    without = experiment(model={"name": str(tmp_path), "spare_task_tokens": 5, "chat_template": "none"})
    assert vocabulary_of(without).size == planned.size - 1


@pytest.mark.parametrize("name", NAMES)
def test_operations_after_the_head_are_noticed_without_values(name: str) -> None:
    """The structure tells the same as the values, for heads that scale or cap and for plain ones."""
    model = architectures.untrained(config_of(name))
    with FakeTensorMode(allow_non_fake_inputs=True), cpu_trace():
        planned = head_is_one_product(type(model)(config_of(name)))
    assert planned is logits_are_one_product(model)


def test_a_model_without_a_configuration_is_refused(tmp_path: Path) -> None:
    config = ModelConfig(name=str(tmp_path))
    with pytest.raises(ModelError, match="no model configuration"):
        planned_model(config)
    with pytest.raises(ModelError, match="no model configuration"):
        sequence_limit(config)


def test_the_longest_sequence(tmp_path: Path) -> None:
    config_of("llama").save_pretrained(tmp_path)
    assert sequence_limit(ModelConfig(name=str(tmp_path))) == 32
    assert sequence_limit(ModelConfig(name=str(tmp_path), max_length=20)) == 20
    assert sequence_limit(experiment().model) == 48


def test_the_callers_random_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    planned_model(experiment().model)
    assert torch.equal(torch.get_rng_state(), before)
