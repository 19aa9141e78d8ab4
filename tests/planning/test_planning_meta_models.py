"""Models from their configuration alone have exactly the parameters of those with weights."""

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
from ray_l4.learner.models import build_model
from ray_l4.learner.position_logits import PositionLogits
from ray_l4.learner.pretrained import grow
from ray_l4.planning.meta_models import (
    Vocabulary,
    blank_student,
    count_parameters,
    head_is_one_product,
    longest,
    vocabulary,
)
from ray_l4.text.tokenizer import TaskTokenizer
from tests.learner import architectures
from tests.planning.planning_fixtures import cpu_ledger, experiment

NAMES = ("gpt2", "llama", "neox", "granite", "cohere", "gemma2")
TOKENS = Vocabulary(architectures.VOCABULARY, 3)


def config_of(name: str) -> Any:
    """A copy, for a model that grows writes its size there."""
    return copy.deepcopy(getattr(architectures, name.upper()))


def blank(config: ModelConfig, tokens: Vocabulary = TOKENS) -> Any:
    with FakeTensorMode(allow_non_fake_inputs=True), cpu_ledger():
        return blank_student(config, tokens)


def numbers(model: Any) -> tuple[int, int]:
    """Parameters, and those that are trained."""
    own = list(model.parameters())
    return sum(p.numel() for p in own), sum(p.numel() for p in own if p.requires_grad)


@pytest.mark.parametrize("lora", [None, {"rank": 3}], ids=["whole", "lora"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "neox"])
def test_a_named_model_needs_no_weights(tmp_path: Path, name: str, lora: dict[str, int] | None) -> None:
    config_of(name).save_pretrained(tmp_path)
    planned = blank(ModelConfig(name=str(tmp_path), lora=lora))
    assert all(isinstance(p, FakeTensor) for p in planned.parameters())
    real = architectures.untrained(config_of(name))
    drawn = grow(real, TOKENS.size)
    if lora:
        add_adapters(real, LoraConfig(**lora), "base", drawn)
    counted = count_parameters(planned)
    assert (counted.total, counted.trainable) == numbers(real)
    assert (counted.trainable < counted.total) is bool(lora)


def test_a_model_from_scratch_has_the_parameters_it_will_have() -> None:
    config = experiment().model
    tokens = vocabulary(experiment())
    real: Any = build_model(config, tokens, 0)  # type: ignore[arg-type]
    counted = count_parameters(blank(config, tokens))
    assert (counted.total, counted.trainable) == numbers(real)
    block = sum(p.numel() for p in real.transformer.h[0].parameters())
    assert counted.largest_block == block
    assert counted.outside_blocks == counted.total - block


def test_the_vocabulary_is_the_largest_that_the_stream_can_give() -> None:
    config = experiment(model={"from_scratch": {"vocabulary": 300}, "spare_task_tokens": 5})
    texts = [f"word{index} and more words" for index in range(400)]
    real = TaskTokenizer.trained(texts, 300, ["mini.woz"], 5)
    planned = vocabulary(config)
    assert planned.size == real.size, "there was text enough"
    assert len(planned.task_tokens) == len(real.task_tokens)
    assert len({planned.ans, planned.pad, planned.unk, *planned.task_tokens}) == 3 + 6


@pytest.mark.parametrize("name", NAMES)
def test_what_follows_the_head_is_seen_without_values(name: str) -> None:
    """As ``PositionLogits`` sees it by comparing numbers, for heads that scale or cap and for plain ones."""
    model = architectures.untrained(config_of(name))
    with FakeTensorMode(allow_non_fake_inputs=True), cpu_ledger():
        planned = head_is_one_product(type(model)(config_of(name)))
    assert planned is PositionLogits(model).direct


def test_no_model_without_a_configuration(tmp_path: Path) -> None:
    config = ModelConfig(name=str(tmp_path))
    with pytest.raises(ModelError, match="no model configuration"):
        blank(config)
    with pytest.raises(ModelError, match="no model configuration"):
        longest(config)


def test_the_longest_sequence(tmp_path: Path) -> None:
    config_of("llama").save_pretrained(tmp_path)
    assert longest(ModelConfig(name=str(tmp_path))) == 32
    assert longest(ModelConfig(name=str(tmp_path), max_length=20)) == 20
    assert longest(experiment().model) == 48


def test_no_random_number_is_drawn_from_the_callers_generator() -> None:
    before = torch.get_rng_state()
    blank(experiment().model)
    assert torch.equal(torch.get_rng_state(), before)
