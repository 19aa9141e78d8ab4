"""DER++'s terms in a stage, compared with plain autograd."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from ray_l4.learner.dark_guard import DarkGuard
from ray_l4.learner.learner import Learner
from ray_l4.learner.stage_run import StageRun
from ray_l4.seeds import derive
from ray_l4.text.stored import reservoir_of, stored_part
from tests.learner import learner_fixtures as small
from tests.learner.guard_fixtures import answer_logits, begun, table

ALPHA, BETA, CAPACITY = 0.7, 0.3, 5


def experiment(dropout: float = 0.0, **regulariser: Any) -> Any:
    return small.experiment(
        model={"from_scratch": {"layers": 1, "width": 32, "heads": 2, "positions": 64, "dropout": dropout}},
        training={"epochs": 2, "batch_size": 3, "max_grad_norm": 1e9},
        replay={"capacity": CAPACITY},
        regulariser={"logits_weight": ALPHA, "labels_weight": BETA, "stored_logits": 4} | regulariser,
    )


def memory() -> pa.Table:
    return reservoir_of([stored_part(table("a", 9), "a", 0, CAPACITY)], CAPACITY)


def guard_of(run: StageRun) -> DarkGuard:
    assert isinstance(run.learner.guard, DarkGuard)
    return run.learner.guard


def second_stage(config: Any = None, peer: int = 0) -> tuple[StageRun, Any]:
    """Begin a second stage after a first one of three steps. Returns also the model at the first one's end."""
    learner = small.unlike(small.peers(config or experiment(), small.tokenizer(), "derpp", peer + 1))[peer]
    first = learner.begin_stage(0, table("a", 9))
    take(first, 3)
    first.consolidate()
    return learner.begin_stage(1, table("b", 6), memory()), copy.deepcopy(learner.model).eval()


def take(run: StageRun, steps: int) -> list[dict[str, float]]:
    figures = []
    for step in range(run.next_step, run.next_step + steps):
        run.forward(step)
        figures.append(run.backward(step, []))
    return figures


def drawn(purpose: str, step: int) -> list[dict[str, Any]]:
    generator = np.random.default_rng(derive(0, purpose, 1, step))
    rows = generator.choice(CAPACITY, size=3, replace=False)
    return memory().take(pa.array(rows)).to_pylist()  # type: ignore[no-any-return]


def outputs(model: Any, rows: list[dict[str, Any]]) -> tuple[Tensor, Tensor]:
    pairs = [answer_logits(model, row, small.tokenizer()) for row in rows]
    return torch.cat([pair[0] for pair in pairs]), torch.cat([pair[1] for pair in pairs])


def plain_terms(model: Any, before: Any, step: int, size: int | None) -> tuple[Tensor, Tensor]:
    """Compute both terms by their definition. ``before``: the model that recorded; ``size``: entries of a token."""
    rows = drawn("dark logits", step)
    with torch.no_grad():
        recorded, _ = outputs(before, rows)
    now, _ = outputs(model, rows)
    ids = recorded.sort(descending=True).indices[:, :size]
    distance = ((now.gather(1, ids) - recorded.gather(1, ids)) ** 2).mean()
    return distance, functional.cross_entropy(*outputs(model, drawn("dark labels", step)))


@pytest.mark.parametrize("size", [4, None])
def test_both_terms_are_part_of_loss_and_gradient(size: int | None) -> None:
    run, before = second_stage(experiment(stored_logits=size))
    gradients = small.record_gradients(run)
    for step in range(3):
        plain = copy.deepcopy(run.learner.model)
        (figures,) = take(run, 1)
        nll = functional.cross_entropy(*outputs(plain, run.tokens.take(run.sampler.indices(step)).to_pylist()))
        distance, labels = plain_terms(plain, before, step, size)
        added = ALPHA * distance + BETA * labels
        (nll + added).backward()
        assert figures["penalty"] == pytest.approx(added.item(), rel=1e-5)
        assert figures["loss"] == pytest.approx((nll + added).item(), rel=1e-5)
        assert step == 0 or distance > 0, "the model has changed since"
        small.assert_same_gradients(gradients[step], plain)


@pytest.mark.parametrize(("left_out", "kept"), [("logits_weight", 1), ("labels_weight", 0)])
def test_a_term_of_weight_zero_is_left_out(left_out: str, kept: int) -> None:
    run, before = second_stage(experiment(**{left_out: 0.0}))
    take(run, 1)
    plain = copy.deepcopy(run.learner.model)
    (figures,) = take(run, 1)
    expected = (ALPHA, BETA)[kept] * plain_terms(plain, before, 1, 4)[kept].item()
    assert figures["penalty"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kept", [None, memory().slice(0, 0)], ids=["none", "empty"])
def test_without_stored_examples_nothing_is_added(kept: pa.Table | None) -> None:
    guarded, free = begun("derpp", experiment(0.3), kept), begun("finetune", experiment(0.3))
    for found, expected in zip(take(guarded, 2), take(free, 2), strict=True):
        assert found.pop("penalty") == 0.0
        assert found == expected
    assert guarded.learner.weights().tobytes() == free.learner.weights().tobytes()


def test_logits_are_recorded_without_dropout_which_is_on_again_afterwards() -> None:
    run, before = second_stage(experiment(dropout=0.5))
    assert run.learner.model.training
    rows = memory().to_pylist()
    with torch.no_grad():
        expected, _ = outputs(before, rows)
    _, values_NK = guard_of(run).stored.of(memory(), np.arange(CAPACITY))
    torch.testing.assert_close(values_NK, expected.topk(4).values, rtol=1e-5, atol=1e-5)


def test_a_guard_restored_from_bytes_gives_the_same_next_steps() -> None:
    run, _ = second_stage(experiment(dropout=0.3))
    again = begun("derpp", experiment(dropout=0.3), memory())
    assert isinstance(again.learner, Learner) and again.learner.guard is not None
    known = guard_of(run).to_bytes()
    assert known is not None
    again.learner.guard.restore(known, torch.device("cpu"))
    again.learner.load(run.learner.weights())
    assert take(run, 3) == take(again, 3)
    assert run.learner.weights().tobytes() == again.learner.weights().tobytes()


def test_dropout_on_the_memory_does_not_depend_on_other_students_in_the_process() -> None:
    config = experiment(dropout=0.5)
    (calm, _), (disturbed, _), (other, _) = second_stage(config), second_stage(config), second_stage(config, peer=1)
    for step in range(3):
        for run in (calm, disturbed, other):
            run.forward(step)
        disturbed.backward(step, [])
        torch.manual_seed(step)
        calm.backward(step, [])
        other.backward(step, [])
    assert calm.learner.weights().tobytes() == disturbed.learner.weights().tobytes()
    assert calm.learner.weights().tobytes() != other.learner.weights().tobytes()
