"""Blocks of a model, and the same training with them compiled."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig

from ray_l4.errors import ModelError
from ray_l4.learner import stage_state
from ray_l4.learner.blocks import blocks_of, compiled_later
from ray_l4.learner.learner import Learner
from ray_l4.learner.models import build_model
from ray_l4.learner.stage_run import StageRun
from ray_l4.methods import get_method
from tests.learner import adapter_fixtures as adapted
from tests.learner import learner_fixtures as small

STEPS = 5
SHAPE = {"layers": 2, "width": 16, "heads": 2, "positions": 64, "vocabulary": 300, "dropout": 0.0}

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="compilation for a CPU needs a C++ compiler")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with fewer heads of keys than of queries."""
    config = LlamaConfig.from_dict(adapted.CONFIGS["llama, tied"].to_dict() | {"num_key_value_heads": 1})
    return adapted.save_base(tmp_path_factory.mktemp("blocks") / "base", config)


def begun(base: Path | None, **model: Any) -> StageRun:
    """Begin a stage with a GPT-2 from scratch, or with the Llama at ``base``; ``model`` changes settings."""
    source: dict[str, Any] = {"from_scratch": SHAPE} if base is None else {"name": str(base)}
    experiment = small.experiment(model=source | model)
    tok = small.tokenizer() if base is None else adapted.tokenizer(base)
    learner = Learner(0, build_model(experiment.model, tok, 3), tok, experiment, get_method("lamol"))
    (run,) = small.begun([learner], small.tokens(tok))
    return run


def learn(run: StageRun, steps: range) -> list[float]:
    """Learn steps, whose batches have different lengths; return the losses."""
    return [figures[0]["loss"] for figures in small.train([run], {0: steps})]


def num_compiled() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


@pytest.fixture
def nothing_compiled() -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


KINDS: dict[str, dict[str, Any]] = {
    "GPT-2": {},
    "Llama": {},
    "Llama with adapters": {"lora": {"rank": 2, "dropout": 0.0}},
}


@pytest.mark.slow
@needs_compiler
@pytest.mark.usefixtures("nothing_compiled")
@pytest.mark.parametrize("kind", KINDS)
def test_compiled_blocks_learn_the_same(base: Path, kind: str) -> None:
    """Dropout is off: compiled blocks draw other masks."""
    source = base if kind.startswith("Llama") else None
    plain, run = begun(source, **KINDS[kind]), begun(source, **KINDS[kind], compile=True)
    gradients, found = small.record_gradients(plain), small.record_gradients(run)
    losses = learn(plain, range(STEPS))
    assert num_compiled() == 0, "neither without the setting, nor for the tokens that probe a model"
    first = learn(run, range(1))
    compiled = num_compiled()
    assert compiled > 0
    assert first + learn(run, range(1, STEPS)) == pytest.approx(losses, rel=1e-6)
    assert num_compiled() == compiled, "once for all lengths"
    for expected, own in zip(gradients, found, strict=True):
        largest = max(float(gradient.abs().max()) for gradient in expected.values())
        for name, gradient in expected.items():
            assert float((own[name] - gradient).abs().max()) <= 1e-5 * largest, name


@pytest.mark.slow
@needs_compiler
@pytest.mark.usefixtures("nothing_compiled")
def test_a_stage_goes_on_from_a_state_with_blocks_that_are_compiled_anew() -> None:
    """Bit for bit, though another batch is the first that they see."""
    run = begun(None, compile=True)
    learn(run, range(1))
    state = stage_state.to_bytes(run)
    expected = learn(run, range(1, STEPS))
    torch._dynamo.reset()
    again = begun(None, compile=True)
    stage_state.restore(again, state)
    assert learn(again, range(1, STEPS)) == expected
    assert small.same_weights(again.learner, run.learner)


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
