"""Steps on a GPU: the same losses and gradients as on a CPU, in both precisions, and where the host waits."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from ray_l4.config.experiment import ExperimentConfig
from ray_l4.learner.learner import Learner
from ray_l4.learner.models import build_model
from ray_l4.learner.stage_run import StageRun
from ray_l4.methods import get_method
from ray_l4.seeds import derive
from tests.learner import adapter_fixtures as adapted
from tests.learner import learner_fixtures as small

STEPS = 3
SHAPE = {"layers": 2, "width": 64, "heads": 2, "positions": 64, "vocabulary": 400, "dropout": 0.0}
Figures = Sequence[dict[str, float]]
Gradients = Sequence[dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama without dropout."""
    return adapted.save_base(tmp_path_factory.mktemp("gpu") / "base", adapted.CONFIGS["llama, tied"])


def begun(source: Path | None, device: torch.device, **model: Any) -> list[StageRun]:
    """Return two students that have begun a stage: GPT-2 from scratch, or the Llama at ``source``."""
    shape = model.pop("shape", {})
    kind = {"from_scratch": SHAPE | shape} if source is None else {"name": str(source)}
    experiment: ExperimentConfig = small.experiment(model=kind | model, peers={"init": "own"})
    tok = small.tokenizer() if source is None else adapted.tokenizer(source)
    learners = [
        Learner(
            peer,
            build_model(experiment.model, tok, derive(0, "init", peer)).to(device),
            tok,
            experiment,
            get_method("l4"),
        )
        for peer in range(2)
    ]
    return small.begun(learners, small.tokens(tok))


def learned(runs: Sequence[StageRun]) -> tuple[list[Figures], Gradients]:
    """Learn some steps; return the figures of both students, and the gradients of the first one."""
    gradients = small.record_gradients(runs[0])
    figures = small.train(runs, {peer: range(STEPS) for peer in range(2)})
    return [[own[peer] for peer in range(2)] for own in figures], gradients


def assert_close(found: tuple[list[Figures], Gradients], expected: tuple[list[Figures], Gradients], rel: float) -> None:
    """Compare losses, and gradients relative to their largest entry."""
    for mine, theirs in zip(found[0], expected[0], strict=True):
        for own, other in zip(mine, theirs, strict=True):
            for name in ("loss", "nll_qa", "kd_qa", "nll_lm", "kd_lm"):
                assert own[name] == pytest.approx(other[name], rel=rel, abs=rel * other["loss"]), name
    for step, reference in zip(found[1], expected[1], strict=True):
        largest = max(float(gradient.abs().max()) for gradient in reference.values())
        for name, gradient in reference.items():
            assert float((step[name].cpu() - gradient.cpu()).abs().max()) <= 10 * rel * largest, name


@pytest.mark.parametrize("kind", ["GPT-2", "Llama"])
@pytest.mark.parametrize(("precision", "rel"), [("float32", 1e-4), ("bfloat16", 2e-2)])
def test_a_step_learns_what_it_learns_on_a_cpu(
    llama: Path, gpu: torch.device, kind: str, precision: str, rel: float
) -> None:
    """The weights stay float32; only the arithmetic of products is bfloat16."""
    source = llama if kind == "Llama" else None
    runs = begun(source, gpu, precision=precision)
    assert {parameter.dtype for parameter in runs[0].learner.model.parameters()} == {torch.float32}
    assert_close(learned(runs), learned(begun(source, torch.device("cpu"))), rel)


def test_compiled_blocks_learn_the_same_on_a_gpu(gpu: torch.device) -> None:
    assert_close(learned(begun(None, gpu, compile=True)), learned(begun(None, gpu)), 1e-4)


def test_a_step_is_the_same_when_it_is_repeated(gpu: torch.device) -> None:
    """With dropout, whose masks follow from the seed and the step."""
    losses = []
    for _ in range(2):
        figures, _ = learned(begun(None, gpu, shape={"dropout": 0.1}))
        losses.append([own["loss"] for step in figures for own in step])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_step_waits_for_the_gpu_at_most_twice(gpu: torch.device) -> None:
    """Once in the forward pass, where Transformers looks at positions, and once to read figures before the update."""
    (run, _) = begun(None, gpu, shape={"dropout": 0.1})
    for step in range(STEPS):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn" if step else "default")
            try:
                targets = run.forward(step).targets()
                in_forward = len(caught)
                run.backward(step, [targets])
            finally:
                torch.cuda.set_sync_debug_mode("default")
        if step:
            assert in_forward <= 1, [str(own.message) for own in caught]
            assert len(caught) <= 2, [str(own.message) for own in caught]
