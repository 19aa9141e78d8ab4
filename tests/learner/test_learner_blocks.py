"""Blocks of a model, and the same training with them compiled."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig

from ray_l4.errors import ModelError
from ray_l4.learner.blocks import blocks_of, compiled_later
from ray_l4.learner.learner import Learner
from ray_l4.learner.models import build_model
from ray_l4.methods import get_method
from tests.learner import adapter_fixtures as adapted
from tests.learner import learner_fixtures as small

STEPS = 3
SHAPE = {"layers": 2, "width": 16, "heads": 2, "positions": 64, "vocabulary": 300, "dropout": 0.0}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with fewer heads of keys than of queries."""
    config = LlamaConfig.from_dict(adapted.CONFIGS["llama, tied"].to_dict() | {"num_key_value_heads": 1})
    return adapted.save_base(tmp_path_factory.mktemp("blocks") / "base", config)


def learned(base: Path | None, compiled: bool) -> tuple[list[float], list[dict[str, torch.Tensor]]]:
    """Train for some steps, whose batches have different lengths; return the losses and the gradients."""
    source: dict[str, Any] = {"from_scratch": SHAPE} if base is None else {"name": str(base)}
    experiment = small.experiment(model=source | {"compile": compiled})
    tok = small.tokenizer() if base is None else adapted.tokenizer(base)
    learner = Learner(0, build_model(experiment.model, tok, 3), tok, experiment, get_method("lamol"))
    (run,) = small.begun([learner], small.tokens(tok))
    gradients = small.record_gradients(run)
    return [figures[0]["loss"] for figures in small.train([run], {0: range(STEPS)})], gradients


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="compilation for a CPU needs a C++ compiler")
@pytest.mark.parametrize("kind", ["GPT-2", "Llama"])
def test_compiled_blocks_learn_the_same(base: Path, kind: str) -> None:
    """Dropout is off: compiled blocks draw other masks."""
    source = base if kind == "Llama" else None
    counted = torch._dynamo.utils.counters["stats"]
    counted.clear()
    plain = learned(source, compiled=False)
    assert not counted["unique_graphs"]
    losses, gradients = learned(source, compiled=True)
    assert counted["unique_graphs"] > 0
    assert losses == pytest.approx(plain[0], rel=1e-6)
    for expected, own in zip(plain[1], gradients, strict=True):
        largest = max(float(gradient.abs().max()) for gradient in expected.values())
        for name, gradient in expected.items():
            assert float((own[name] - gradient).abs().max()) <= 1e-5 * largest, name


def test_the_blocks_of_a_model_are_its_layers() -> None:
    model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=10, n_positions=8))
    assert blocks_of(model) == list(model.transformer.h)


def test_a_model_without_blocks_cannot_be_compiled() -> None:
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=10, n_positions=8))
    model._no_split_modules = None
    with (
        pytest.raises(ModelError, match=r"model\.compile: GPT2LMHeadModel does not name its blocks. Remove the key"),
        compiled_later(model),
    ):
        pass
    assert all(module._compiled_call_impl is None for module in model.modules())
