"""O-LoRA in a stage, compared with separate adapters for every task."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedConfig

from ray_l4.errors import ModelError
from ray_l4.learner.learner import Learner
from ray_l4.learner.models import build_model, load_folder
from ray_l4.learner.stage_run import StageRun
from ray_l4.text.assembly import assemble
from ray_l4.text.tokenizer import TaskTokenizer
from tests.learner import adapter_fixtures as adapted
from tests.learner import learner_fixtures as small
from tests.learner.guard_fixtures import answer_logits

RANK, SUBSPACES, SCALE, STRENGTH = 2, 3, 2.0, 0.5
NO_DROPOUT = {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}


@pytest.fixture(scope="module", params=list(adapted.CONFIGS))
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("base"), adapted.CONFIGS[request.param])


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("gpt2"), adapted.CONFIGS["gpt2, tied"])


def saved(folder: Path, config: PreTrainedConfig) -> Path:
    quiet = {name: value for name, value in NO_DROPOUT.items() if hasattr(config, name)}
    return adapted.save_base(folder, type(config).from_dict(config.to_dict() | quiet))


def experiment(base: Path, max_grad_norm: float = 1e9, dropout: float = 0.0, **optim: Any) -> Any:
    lora = {"rank": RANK, "alpha": SCALE * RANK, "dropout": dropout, "subspaces": SUBSPACES}
    return small.experiment(
        model={"name": str(base), "spare_task_tokens": 2, "lora": lora},
        training={"epochs": 2, "batch_size": 3, "max_grad_norm": max_grad_norm},
        optim={"variant": "torch", "lr": 1e-2, "eps": 1e-8, "weight_decay": 0.0} | optim,
        regulariser={"weight": STRENGTH},
    )


def begun(base: Path, stage: int = 1, **changes: Any) -> StageRun:
    """Begin a stage with adapters that have learned those before it, and a part of this one."""
    tok = adapted.tokenizer(base)
    (learner,) = small.peers(experiment(base, **changes), tok, "olora")
    adapted.disturb(learner.model)
    with torch.no_grad():
        for own in adapters(learner):
            own.output[:, (stage + 1) * RANK :] = 0
    return learner.begin_stage(stage, assemble(small.examples("b", 6), tok, 64)[0])


@dataclass(frozen=True)
class Adapter:
    layer: str
    input: nn.Parameter
    """A: (rank * subspaces, inputs)."""
    output: nn.Parameter
    """B: (outputs, rank * subspaces)."""


def adapters(learner: Any) -> list[Adapter]:
    modules = dict(learner.model.named_modules())
    return [
        Adapter(name.removesuffix(".lora_A"), modules[name].default.weight, modules[f"{name[:-1]}B"].default.weight)
        for name in modules
        if name.endswith(".lora_A")
    ]


class Apart(nn.Module):
    """A layer with a pair of matrices for every task: constants for earlier ones, trained for the current one."""

    def __init__(self, layer: nn.Module, own: Adapter, stage: int) -> None:
        super().__init__()
        self.layer = layer
        inputs = [block.detach().clone() for block in own.input.split(RANK)]
        outputs = [block.detach().clone() for block in own.output.split(RANK, dim=1)]
        self.earlier = list(zip(inputs, outputs, strict=True))[:stage]
        self.input, self.output = nn.Parameter(inputs[stage]), nn.Parameter(outputs[stage])

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layer(x)
        for a, b in [*self.earlier, (self.input, self.output)]:
            result = result + SCALE * (x @ a.T) @ b.T
        return result


def plain_twin(run: StageRun, tok: TaskTokenizer) -> Any:
    """The same model without peft: separate adapters, and the rows of new tokens as a part of the embeddings."""
    config = run.learner.experiment.model.model_copy(update={"lora": None})
    plain, trained = build_model(config, tok, 0), run.learner.model
    embeddings, head = trained.get_input_embeddings(), trained.get_output_embeddings()
    with torch.no_grad():
        weight = plain.get_input_embeddings().weight
        weight.copy_(embeddings(torch.arange(len(weight))))
        plain.get_output_embeddings().weight.copy_(head(torch.eye(weight.shape[1])).T)
    for own in adapters(run.learner):
        plain.set_submodule(own.layer, Apart(plain.get_submodule(own.layer), own, run.stage))
    return plain


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_loss_and_gradients_equal_those_of_separate_adapters(base: Path, stage: int) -> None:
    run, tok = begun(base, stage), adapted.tokenizer(base)
    plain = plain_twin(run, tok)
    gradients = small.record_gradients(run)
    run.forward(0)
    figures = run.backward(0, [])

    pairs = [answer_logits(plain, row, tok) for row in run.tokens.take(run.sampler.indices(0)).to_pylist()]
    nll = functional.cross_entropy(torch.cat([pair[0] for pair in pairs]), torch.cat([pair[1] for pair in pairs]))
    parts = [module for module in plain.modules() if isinstance(module, Apart)]
    overlaps = [torch.abs(a @ part.input.T).sum() for part in parts for a, _ in part.earlier]
    penalty = STRENGTH * sum(overlaps, start=torch.zeros(()))
    (nll + penalty).backward()
    assert figures["penalty"] == pytest.approx(penalty.item(), rel=1e-5)
    assert (figures["penalty"] > 0) == (stage > 0)
    assert figures["loss"] == pytest.approx((nll + penalty).item(), rel=1e-5)

    block = slice(stage * RANK, (stage + 1) * RANK)
    for own in adapters(run.learner):
        twin = plain.get_submodule(own.layer)
        a, b = (gradients[0][f"{own.layer}.lora_{side}.default.weight"] for side in "AB")
        close(a[block], twin.input.grad)
        close(b[:, block], twin.output.grad)
        assert a[block].any() and b[:, block].any()
        for other in (a[: block.start], a[block.stop :], b[:, : block.start], b[:, block.stop :]):
            assert not other.any(), "exactly zero"
    of_tokens = {name: gradient for name, gradient in gradients[0].items() if "trainable_tokens" in name}
    for name, gradient in of_tokens.items():
        layer = plain.get_submodule(name.partition(".token_adapter")[0])
        close(gradient, layer.weight.grad[adapted.added(tok)])
    assert of_tokens, "their rows are trained in every stage"


def close(found: Tensor, expected: Tensor) -> None:
    assert float((found - expected).norm()) <= 1e-5 * max(float(expected.norm()), 1e-3)


@pytest.mark.parametrize("variant", ["reference", "torch"])
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_all_other_blocks_stay_as_they_are_bit_for_bit(gpt2: Path, variant: str, stage: int) -> None:
    run = begun(gpt2, stage, variant=variant, dropout=0.2, max_grad_norm=0.1)
    before = [Adapter(own.layer, *copies(own)) for own in adapters(run.learner)]
    for step in range(run.num_steps):
        run.forward(step)
        run.backward(step, [])
    run.consolidate()
    block = slice(stage * RANK, (stage + 1) * RANK)
    for old, new in zip(before, adapters(run.learner), strict=True):
        for was, now in ((old.input, new.input), (old.output.T, new.output.T)):
            assert not torch.equal(was[block], now[block]), "the stage has learned"
            for part in (slice(0, block.start), slice(block.stop, None)):
                assert bits(was[part]) == bits(now[part])
        assert not new.output[:, block.stop :].any(), "what later stages will train has no effect yet"


def copies(own: Adapter) -> tuple[nn.Parameter, nn.Parameter]:
    return nn.Parameter(own.input.detach().clone()), nn.Parameter(own.output.detach().clone())


def bits(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().numpy().tobytes()


def test_clipping_sees_the_gradients_of_the_stage_alone(gpt2: Path) -> None:
    free, clipped = begun(gpt2), begun(gpt2, max_grad_norm=0.1)
    recorded = [small.record_gradients(run) for run in (free, clipped)]
    figures = []
    for run in (free, clipped):
        run.forward(0)
        figures.append(run.backward(0, []))
    norms = [float(torch.stack([g.norm() for g in steps[0].values()]).norm()) for steps in recorded]
    assert figures[0]["grad_norm"] == figures[1]["grad_norm"] == pytest.approx(norms[0], rel=1e-5)
    assert norms[1] == pytest.approx(0.1, rel=1e-4)


def test_a_stage_without_a_subspace_is_refused(gpt2: Path) -> None:
    tok = adapted.tokenizer(gpt2)
    (learner,) = small.peers(experiment(gpt2), tok, "olora")
    run = learner.begin_stage(SUBSPACES, assemble(small.examples("b", 6), tok, 64)[0])
    run.forward(0)
    with pytest.raises(ModelError, match=r"stage 3: the adapters have 3 subspaces.*model\.lora\.subspaces"):
        run.backward(0, [])


def test_a_checkpoint_is_an_ordinary_one_of_peft(gpt2: Path, tmp_path: Path) -> None:
    """Its scale is alpha / rank of one subspace, and whoever loads it gets the same predictions."""
    run = begun(gpt2)
    assert isinstance(run.learner, Learner)
    settings: Any = run.learner.model.peft_config["default"]
    assert settings.r == RANK * SUBSPACES and settings.lora_alpha / settings.r == SCALE
    folder = adapted.save_checkpoint(tmp_path / "checkpoint", run.learner.model, adapted.tokenizer(gpt2))
    loaded, _ = load_folder(folder)
    assert torch.equal(adapted.logits(loaded), adapted.logits(run.learner.model))
