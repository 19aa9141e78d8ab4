"""Settings for larger models: activations computed again, and weights in bfloat16."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig

from ray_l4.config.experiment import ExperimentConfig
from ray_l4.config.model import ModelConfig
from ray_l4.errors import ModelError
from ray_l4.learner.adapters import has_adapters
from ray_l4.learner.learner import Learner
from ray_l4.learner.models import blank_model, build_model, describe, load_bytes, load_folder, to_bytes
from ray_l4.learner.pretrained import recompute_activations
from ray_l4.methods import get_method
from tests.learner import adapter_fixtures as adapted
from tests.learner import learner_fixtures as small


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with dropout in its attention."""
    config = LlamaConfig.from_dict(adapted.CONFIGS["llama, tied"].to_dict() | {"attention_dropout": 0.2})
    return adapted.save_base(tmp_path_factory.mktemp("memory") / "base", config)


def of(base: Path, kind: str, **model: Any) -> ExperimentConfig:
    """Make an experiment with a model of this kind, and settings of its own."""
    if kind == "from scratch":
        plain = small.experiment()
    elif kind == "adapters":
        plain = adapted.experiment(base, dropout=0.1)
    else:
        plain = small.experiment(model={"name": str(base), "spare_task_tokens": 2})
    fields = plain.model_dump()
    return ExperimentConfig.model_validate(fields | {"model": fields["model"] | model})


def learned(experiment: ExperimentConfig, base: Path, steps: int = 3) -> tuple[list[dict[str, float]], list[Any]]:
    """Train for some steps; return the figures and the gradients of each."""
    tok = small.tokenizer() if experiment.model.from_scratch else adapted.tokenizer(base)
    learner = Learner(0, build_model(experiment.model, tok, 3), tok, experiment, get_method("lamol"))
    (run,) = small.begun([learner], small.tokens(tok))
    gradients = small.record_gradients(run)
    return [figures[0] for figures in small.train([run], {0: range(steps)})], gradients


KINDS = ("from scratch", "all weights", "adapters")


@pytest.mark.parametrize("kind", KINDS)
def test_recomputed_activations_give_the_same_losses_and_gradients(base: Path, kind: str) -> None:
    """Bit for bit, dropout included."""
    figures, gradients = learned(of(base, kind), base)
    again, same = learned(of(base, kind, gradient_checkpointing=True), base)
    names = ("loss", "nll_qa", "nll_lm", "grad_norm")
    assert [[step[name] for name in names] for step in figures] == [[step[name] for name in names] for step in again]
    for one, other in zip(gradients, same, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("kind", KINDS)
def test_recomputed_activations_are_not_kept(base: Path, kind: str) -> None:
    """The tensors that autograd holds for the backward pass are fewer; those inside a layer are gone."""

    def kept(experiment: ExperimentConfig) -> int:
        tok = small.tokenizer() if experiment.model.from_scratch else adapted.tokenizer(base)
        model = build_model(experiment.model, tok, 3).train()
        held: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        for parameter in model.parameters():
            held[parameter.untyped_storage().data_ptr()] = 0
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = model(input_ids=torch.ones(8, 32, dtype=torch.long), use_cache=False).logits.sum()
        assert loss.requires_grad
        return sum(held.values())

    assert kept(of(base, kind, gradient_checkpointing=True)) < 0.7 * kept(of(base, kind))


def test_a_model_that_cannot_recompute_activations_is_an_error(base: Path) -> None:
    model = build_model(of(base, "all weights").model, adapted.tokenizer(base), 0)
    model.supports_gradient_checkpointing = False
    with pytest.raises(ModelError, match=r"model\.gradient_checkpointing: LlamaForCausalLM.*Remove the key"):
        recompute_activations(model)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_weights_in_bfloat16_take_half_the_memory_and_learn(base: Path, kind: str) -> None:
    experiment = of(base, kind, dtype="bfloat16")
    model = build_model(experiment.model, adapted.tokenizer(base), 3)
    whole = build_model(of(base, kind).model, adapted.tokenizer(base), 3)
    own = {name: (p.dtype, p.requires_grad) for name, p in model.named_parameters()}
    narrow = {dtype for dtype, trained in own.values() if not trained or not has_adapters(model)}
    assert narrow == {torch.bfloat16}
    assert {dtype for dtype, trained in own.values() if trained} == {
        torch.float32 if has_adapters(model) else torch.bfloat16
    }, "what adapters learn must not be lost to rounding"
    assert sum(p.nbytes for p in model.parameters()) < 0.75 * sum(p.nbytes for p in whole.parameters())
    figures, _ = learned(experiment, base, steps=6)
    reference, _ = learned(of(base, kind), base, steps=6)
    assert figures[0]["loss"] == pytest.approx(reference[0]["loss"], rel=0.02)
    assert figures[-1]["loss"] < figures[0]["loss"]


@pytest.mark.parametrize("kind", KINDS[1:])
def test_a_bfloat16_checkpoint_predicts_as_its_student_does(base: Path, tmp_path: Path, kind: str) -> None:
    experiment, tok = of(base, kind, dtype="bfloat16"), adapted.tokenizer(base)
    model = adapted.disturb(build_model(experiment.model, tok, 3))
    blank = blank_model(experiment.model, tok, describe(model))
    load_bytes(blank, to_bytes(model))
    assert torch.equal(adapted.logits(model), adapted.logits(blank)), "as an evaluator loads it"
    loaded, _ = load_folder(adapted.save_checkpoint(tmp_path, model, tok))
    # By hand it is loaded in float32: the same weights, whose products are rounded less.
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    assert (adapted.logits(model).float() - adapted.logits(loaded)).abs().mean() < 0.05


def test_a_model_from_scratch_has_no_type_of_its_own() -> None:
    with pytest.raises(ValueError, match="'dtype' is that of a pretrained model"):
        ModelConfig.model_validate({"from_scratch": {}, "dtype": "bfloat16"})
