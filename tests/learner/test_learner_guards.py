"""The penalties of EWC and MAS in a stage, compared with plain autograd."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from ray_l4.errors import ModelError
from ray_l4.learner.guards import GUARDS, build_guard
from ray_l4.seeds import derive
from ray_l4.text.tokens import as_stored, concatenated
from tests.learner import learner_fixtures as small
from tests.learner.guard_fixtures import STRENGTH, answer_logits, begun, experiment, importance_guard, table

CPU = torch.device("cpu")
PENALTIES = ["ewc", "mas"]


def assert_close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6 * float(other.max()) + 1e-12)


def plain_importance(method: str, model: Any, rows: Iterable[dict[str, Any]], tok: Any) -> dict[str, Tensor]:
    """Compute the importance by its definition, one example at a time."""
    rows = list(rows)
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for row in rows:
        model.zero_grad()
        logits, targets = answer_logits(model, row, tok)
        if method == "ewc":  # the log-likelihood of the whole answer
            (-functional.cross_entropy(logits, targets, reduction="sum")).backward()
        else:  # the squared norm of the prediction at ANS
            (logits[0].softmax(-1) ** 2).sum().backward()
        for name, p in model.named_parameters():
            total[name] += (p.grad**2 if method == "ewc" else p.grad.abs()) / len(rows)
    return total


# --- importance of weights


@pytest.mark.parametrize("method", PENALTIES)
def test_importance_equals_plain_autograd(method: str) -> None:
    """The model has dropout, which is off while importance is measured and on again afterwards."""
    run = begun(method, experiment(dropout=0.5))
    run.consolidate()
    penalty, model = importance_guard(run).penalty, run.learner.model
    assert model.training
    expected = plain_importance(method, copy.deepcopy(model).eval(), run.tokens.to_pylist(), run.learner.tokenizer)
    assert penalty.importance.keys() == expected.keys()
    for name, values in expected.items():
        assert_close(penalty.importance[name], values)
        assert torch.equal(penalty.anchor[name], dict(model.named_parameters())[name])
    assert all(p.grad is None for p in model.parameters()), "measuring leaves no gradient behind"


@pytest.mark.parametrize("method", PENALTIES)
def test_importance_is_measured_on_current_examples_only(method: str) -> None:
    """Replayed examples belong to earlier tasks, which have been measured already."""
    own = table("b", 6)
    runs = begun(method), *small.begun([begun(method).learner], concatenated(as_stored(table("a", 4), 1), own))
    for run in runs:
        run.consolidate()
    one, other = (importance_guard(run).penalty.importance for run in runs)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_importance_is_measured_on_a_reproducible_sample_of_the_examples() -> None:
    chosen = []
    for seed in (0, 0, 1):
        config = experiment(examples=2).model_copy(update={"seed": seed})
        run = begun("ewc", config)
        model = run.learner.model
        model.load_state_dict(begun("ewc").learner.model.state_dict())
        run.consolidate()
        chosen.append(importance_guard(run).penalty.importance["transformer.wte.weight"])
        generator = np.random.default_rng(derive(seed, "importance", 1))
        picked = sorted(generator.choice(6, size=2, replace=False).tolist())
        rows = run.tokens.take(pa.array(picked)).to_pylist()
        expected = plain_importance("ewc", copy.deepcopy(model).eval(), rows, run.learner.tokenizer)
        assert_close(chosen[-1], expected["transformer.wte.weight"])
    assert torch.equal(chosen[0], chosen[1])
    assert not torch.equal(chosen[0], chosen[2])


@pytest.mark.parametrize("method", PENALTIES)
def test_importances_accumulate_and_the_anchor_moves(method: str) -> None:
    run = begun(method)
    guard, model = importance_guard(run), run.learner.model
    run.consolidate()
    first = guard.penalty
    run.forward(0)
    run.backward(0, [])
    run.consolidate()
    second = plain_importance(method, copy.deepcopy(model).eval(), run.tokens.to_pylist(), small.tokenizer())
    name = "transformer.h.0.mlp.c_fc.weight"
    assert_close(guard.penalty.importance[name], first.importance[name] + second[name])
    assert torch.equal(guard.penalty.anchor[name], dict(model.named_parameters())[name])
    assert not torch.equal(guard.penalty.anchor[name], first.anchor[name])


# --- the penalty in a step


@pytest.mark.parametrize("method", PENALTIES)
def test_the_penalty_is_part_of_loss_and_gradient(method: str) -> None:
    run = begun(method)
    run.consolidate()
    for step in range(2):
        run.forward(step)
        run.backward(step, [])
    penalty, plain = importance_guard(run).penalty, copy.deepcopy(run.learner.model)
    gradients = small.record_gradients(run)
    run.forward(2)
    figures = run.backward(2, [])

    rows = run.tokens.take(run.sampler.indices(2)).to_pylist()
    pairs = [answer_logits(plain, row, run.learner.tokenizer) for row in rows]
    nll = functional.cross_entropy(torch.cat([pair[0] for pair in pairs]), torch.cat([pair[1] for pair in pairs]))
    drift = STRENGTH * sum(
        (penalty.importance[name] * (p - penalty.anchor[name]) ** 2).sum() for name, p in plain.named_parameters()
    )
    (nll + drift).backward()
    assert figures["penalty"] == pytest.approx(drift.item(), rel=1e-5)
    assert figures["penalty"] > 1e-4 * figures["nll_qa"]
    assert figures["loss"] == pytest.approx((nll + drift).item(), rel=1e-5)
    small.assert_same_gradients(gradients[0], plain)


def test_clipping_includes_the_penalty() -> None:
    """The penalty is part of the loss; reference implementations take a separate step (REFERENCE.md#regularisers)."""
    run = begun("ewc", experiment(max_grad_norm=0.5))
    run.consolidate()
    run.forward(0)
    run.backward(0, [])
    gradients = small.record_gradients(run)
    run.forward(1)
    figures = run.backward(1, [])
    norm = torch.stack([gradient.norm() for gradient in gradients[0].values()]).norm()
    assert figures["grad_norm"] > 0.5
    assert float(norm) == pytest.approx(0.5, rel=1e-4)


@pytest.mark.parametrize("method", PENALTIES)
def test_without_a_learned_task_there_is_no_penalty(method: str) -> None:
    held, free = begun(method), begun("finetune")
    for run in (held, free):
        run.forward(0)
    figures, expected = held.backward(0, []), free.backward(0, [])
    assert figures.pop("penalty") == 0.0
    assert figures == expected
    assert held.learner.weights().tobytes() == free.learner.weights().tobytes()


@pytest.mark.parametrize("method", PENALTIES)
def test_a_guard_restored_from_bytes_gives_the_same_next_step(method: str) -> None:
    run, again = begun(method), begun(method)
    run.consolidate()
    known = importance_guard(run).to_bytes()
    assert known is not None
    importance_guard(again).restore(known, CPU)
    figures = []
    for one in small.begun((run.learner, again.learner), table("a", 6), stage=2):
        for step in range(3):
            one.forward(step)
            figures.append(one.backward(step, []))
    assert figures[:3] == figures[3:]
    assert figures[2]["penalty"] > 0
    assert run.learner.weights().tobytes() == again.learner.weights().tobytes()


def test_damaged_bytes_are_refused() -> None:
    guard = build_guard("fisher")
    assert guard is not None
    with pytest.raises(ModelError, match="damaged"):
        guard.restore(np.frombuffer(b"not a penalty at all", dtype=np.uint8), CPU)


@pytest.mark.parametrize("name", GUARDS)
def test_every_learner_has_its_own_guard(name: str) -> None:
    one, other = build_guard(name), build_guard(name)
    assert (one is None) == (name == "none")
    assert one is None or one is not other
