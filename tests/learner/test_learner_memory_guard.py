"""A-GEM's projection in a stage, compared with plain autograd."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from ray_l4.learner.guards import MemoryGuard
from ray_l4.learner.learner import Learner
from ray_l4.learner.models import load_bytes
from ray_l4.learner.stage_run import StageRun
from ray_l4.seeds import derive
from ray_l4.text.tokens import TOKENS, as_stored
from tests.learner import learner_fixtures as small
from tests.learner.guard_fixtures import answer_logits, begun, experiment, table


def memory_gradient(run: StageRun, model: Any, step: int) -> dict[str, Tensor]:
    """Return the gradient of the mean cross-entropy on the stored examples drawn for the step."""
    assert run.memory is not None
    generator = np.random.default_rng(derive(0, "memory", run.stage, step))
    size = min(len(run.sampler.indices(step)), run.memory.num_rows)
    picked = generator.choice(run.memory.num_rows, size=size, replace=False)
    return plain_gradient(run, model, run.memory.take(pa.array(picked)).to_pylist())


def plain_gradient(run: StageRun, model: Any, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    pairs = [answer_logits(model, row, run.learner.tokenizer) for row in rows]
    model.zero_grad()
    functional.cross_entropy(torch.cat([pair[0] for pair in pairs]), torch.cat([pair[1] for pair in pairs])).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def inner(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return float(sum((one[name].double() * other[name].double()).sum() for name in one))


def opposed(count: int = 6) -> pa.Table:
    """Make stored examples that contradict the current ones: each question has the answer to another."""
    own = table("b", 6).to_pylist()
    rows = [
        asked | {"ids": asked["ids"][: asked["prompt_length"]] + other["ids"][other["prompt_length"] :]}
        for asked, other in zip(own, reversed(own), strict=True)
    ]
    return as_stored(pa.Table.from_pylist(rows[:count], schema=TOKENS), 1)


@cache
def remembering() -> np.ndarray:
    """Return weights that have learned the stored examples, whose gradients oppose those of the current ones."""
    changes = {"training": {"epochs": 60, "batch_size": 3}, "optim": {"variant": "torch", "lr": 5e-3, "eps": 1e-8}}
    config = small.experiment(**experiment().model_dump(exclude_unset=True, exclude=set(changes)) | changes)
    (learner,) = small.unlike(small.peers(config, small.tokenizer(), "finetune"))
    runs = small.begun([learner], opposed(6), stage=0)
    small.train(runs, {0: range(runs[0].num_steps)})
    return learner.weights()


def in_conflict(method: str, config: Any = None, peer: int = 0) -> StageRun:
    """Begin a stage whose examples contradict both the learner's weights and its memory."""
    run = begun(method, config, opposed(6), peer)
    load_bytes(run.learner.model, remembering())
    return run


def test_no_gradient_opposes_that_of_the_memory() -> None:
    """The applied gradient, before it is clipped, is A-GEM's: g - (g.r / r.r) r where g.r < 0, else g."""
    run = in_conflict("agem")
    recorded = small.record_gradients(run)
    conflicts = 0
    for step in range(run.num_steps):
        plain = copy.deepcopy(run.learner.model)
        rows = run.tokens.take(run.sampler.indices(step)).to_pylist()
        own, reference = plain_gradient(run, plain, rows), memory_gradient(run, plain, step)
        run.forward(step)
        run.backward(step, [])
        agreement, square = inner(own, reference), inner(reference, reference)
        coefficient = min(agreement, 0.0) / square
        conflicts += agreement < 0
        assert inner(recorded[step], reference) >= -1e-6 * square
        scale = max(float(gradient.norm()) for gradient in own.values())
        for name, gradient in own.items():
            expected = gradient - coefficient * reference[name]
            assert (recorded[step][name] - expected).norm() <= 1e-5 * max(float(expected.norm()), 1e-3 * scale), name
    assert conflicts > 0, "otherwise nothing was tested"


@pytest.mark.parametrize("memory", [None, opposed(0)], ids=["none", "empty"])
def test_without_a_memory_the_gradient_is_unchanged(memory: pa.Table | None) -> None:
    guarded, free = begun("agem", experiment(dropout=0.3), memory), begun("finetune", experiment(dropout=0.3))
    for run in (guarded, free):
        run.forward(0)
    figures, expected = guarded.backward(0, []), free.backward(0, [])
    assert figures.pop("penalty") == 0.0
    assert figures == expected
    assert guarded.learner.weights().tobytes() == free.learner.weights().tobytes()


def test_a_memory_changes_the_weights_but_not_the_reported_loss() -> None:
    guarded, free = in_conflict("agem"), in_conflict("finetune")
    for run in (guarded, free):
        run.forward(0)
    figures, expected = guarded.backward(0, []), free.backward(0, [])
    assert figures["loss"] == expected["loss"]
    assert figures["grad_norm"] != expected["grad_norm"], "this batch does conflict with the memory"
    assert guarded.learner.weights().tobytes() != free.learner.weights().tobytes()


def test_dropout_on_the_memory_does_not_depend_on_other_students_in_the_process() -> None:
    """Another student's forward pass in the same process draws random numbers in between."""
    config = experiment(dropout=0.5)
    calm, disturbed = (in_conflict("agem", config) for _ in range(2))
    other = in_conflict("agem", config, peer=1)
    for step in range(3):
        calm.forward(step)
        disturbed.forward(step)
        other.forward(step)
        disturbed.backward(step, [])
        torch.manual_seed(step)
        calm.backward(step, [])
        other.backward(step, [])
    assert calm.learner.weights().tobytes() == disturbed.learner.weights().tobytes()


def test_a_memory_guard_has_no_state() -> None:
    run = begun("agem", memory=opposed())
    assert isinstance(run.learner, Learner)
    assert isinstance(run.learner.guard, MemoryGuard)
    run.consolidate()
    assert run.learner.guard.to_bytes() is None
