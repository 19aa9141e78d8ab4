"""``l4-released``: the objective of the authors' code and its alternating epochs, against a plain implementation.

Source: REFERENCE.md#l4-released.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from ray_l4.learner.stage_run import StageRun
from ray_l4.methods import resolved
from ray_l4.seeds import derive
from ray_l4.text.tokenizer import TaskTokenizer
from tests.learner import learner_fixtures as small

TEMPERATURE, LM_WEIGHT, ANS_WEIGHT = 0.5, 0.25, 5.0
EPOCHS, BATCH = 2, 3


# --- the plain implementation


def cross_entropy(model: Any, rows: Sequence[dict[str, Any]], tok: TaskTokenizer, head: str) -> Tensor:
    """Return LAMOL's weighted mean over the targets of all rows; 0 for no rows."""
    total, weights = torch.zeros(()), 0.0
    for inputs, first, targets in (flat(row, tok, head) for row in rows):
        logits = model(input_ids=torch.tensor([inputs])).logits[0, first:]
        for position, target in enumerate(targets):
            weight = ANS_WEIGHT if target == tok.ans else 1.0
            total = total + weight * functional.cross_entropy(logits[position], torch.tensor(target))
            weights += weight
    return total / weights if weights else total


def divergence(model: Any, peer: Any, rows: Sequence[dict[str, Any]], tok: TaskTokenizer, head: str) -> Tensor:
    """Return ``F.kl_div(..., reduction="mean") * T^2``, a mean over positions *and* vocabulary; 0 for no rows."""
    student, teacher = [], []
    for inputs, first, _ in (flat(row, tok, head) for row in rows):
        student.append(model(input_ids=torch.tensor([inputs])).logits[0, first:])
        with torch.no_grad():
            teacher.append(peer(input_ids=torch.tensor([inputs])).logits[0, first:])
    if not rows:
        return torch.zeros(())
    log_q = (torch.cat(student) / TEMPERATURE).log_softmax(-1)
    p = (torch.cat(teacher) / TEMPERATURE).softmax(-1)
    return TEMPERATURE**2 * functional.kl_div(log_q, p, reduction="mean")


def flat(row: dict[str, Any], tok: TaskTokenizer, head: str) -> tuple[list[int], int, list[int]]:
    """Return the input, the first position that bears a loss, and the targets from there on."""
    if head == "lm":
        return [row["gen"], *row["ids"]], 0, [*row["ids"], tok.eos]
    return row["ids"], row["prompt_length"] - 1, [*row["ids"][row["prompt_length"] :], tok.eos]


def released_loss(model: Any, peer: Any, rows: Sequence[dict[str, Any]], tok: TaskTokenizer, lambda_: float) -> Tensor:
    """Use labels of pseudo-examples only, or of all examples if there are none; distil on current examples."""
    pseudo = [row for row in rows if row["origin"] == "generated"]
    current = [row for row in rows if row["origin"] == "real"]
    loss = torch.zeros(())
    for head, weight in (("qa", 1.0), ("lm", LM_WEIGHT)):
        on_labels = cross_entropy(model, pseudo or rows, tok, head)
        loss = loss + weight * (on_labels + lambda_ * divergence(model, peer, current, tok, head))
    return loss


def plain_alternation(
    models: Sequence[Any], rows: Sequence[dict[str, Any]], orders: Any, tok: TaskTokenizer, lr: float, lambda_: float
) -> list[list[float]]:
    """Alternate epochs: each model learns a whole epoch while the other, frozen, teaches it."""
    optimizers = [torch.optim.AdamW(model.parameters(), lr=lr, eps=1e-4, weight_decay=0.0) for model in models]
    losses: list[list[float]] = [[], []]
    seen = [0, 0]
    for epoch in range(EPOCHS):
        for me, model in enumerate(models):
            peer = models[1 - me].eval()
            model.train()
            order = orders(me, epoch)
            for start in range(0, len(rows), BATCH):
                batch = [rows[index] for index in order[start : start + BATCH]]
                for group in optimizers[me].param_groups:
                    group["lr"] = lr * (1 - seen[me] / (EPOCHS * len(rows)))
                optimizers[me].zero_grad()
                loss = released_loss(model, peer, batch, tok, lambda_)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizers[me].step()
                seen[me] += len(batch)
                losses[me].append(loss.item())
    return losses


# --- the same with stage runs


def experiment(dropout: float = 0.0, **more: Any) -> Any:
    shape = {"layers": 1, "width": 32, "heads": 2, "positions": 64, "dropout": dropout}
    return resolved(
        small.experiment(
            method="l4-released",
            model={"from_scratch": shape},
            training={"epochs": EPOCHS, "batch_size": BATCH},
            optim={"variant": "torch", "lr": 1e-2, "eps": 1e-4, "weight_decay": 0.0},
            peers={"init": "own"},
            **more,
        )
    )


def begun(config: Any, current: int = 6, replayed: int = 3) -> list[StageRun]:
    tok = small.tokenizer()
    return small.begun(small.unlike(small.peers(config, tok, "l4-released")), small.tokens(tok, current, replayed))


def in_turn(runs: Sequence[StageRun]) -> list[list[dict[str, float]]]:
    """Learn a stage in the coordinator's order, each student in turn per epoch; returns each student's figures."""
    figures: list[list[dict[str, float]]] = [[] for _ in runs]
    first = [0 for _ in runs]
    for epoch in range(EPOCHS):
        for me, run in enumerate(runs):
            last = run.sampler.last_step_of(epoch)
            for by_peer in small.train(runs, {me: range(first[me], last + 1)}):
                figures[me].append(by_peer[me])
            first[me] = last + 1
    return figures


@pytest.mark.filterwarnings("ignore:reduction")  # PyTorch warns about the mean that the authors' code uses
@pytest.mark.parametrize("lambda_", [0.2, 200.0], ids=["as released", "so that it matters"])
def test_two_epochs_in_turn_equal_two_plain_models(lambda_: float) -> None:
    runs = begun(experiment(distillation={"weight": lambda_}))
    models = [copy.deepcopy(run.learner.model) for run in runs]
    rows = runs[0].tokens.to_pylist()
    batches = [[rows[i] for i in run.sampler.indices(step)] for run in runs for step in range(6)]
    kinds = [{row["origin"] for row in batch} for batch in batches]
    assert {"real"} in kinds and {"real", "generated"} in kinds, "both halves of the rule are needed"

    figures = in_turn(runs)
    losses = plain_alternation(
        models,
        rows,
        lambda me, epoch: np.random.default_rng(derive(0, "order", 1, epoch, me)).permutation(len(rows)),
        runs[0].learner.tokenizer,
        lr=1e-2,
        lambda_=lambda_,
    )
    for me, run in enumerate(runs):
        assert [one["loss"] for one in figures[me]] == pytest.approx(losses[me], rel=1e-5)
        expected = models[me].state_dict()
        for name, weights in run.learner.model.state_dict().items():
            assert (weights - expected[name]).norm() <= 1e-5 * expected[name].norm(), (me, name)


def test_the_second_student_learns_from_the_first_after_its_epoch() -> None:
    runs = begun(experiment(distillation={"weight": 50_000.0}))
    before = runs[0].predict(0, 1)
    before.targets()  # before the weights change
    steps = runs[0].sampler.last_step_of(0) + 1
    small.train(runs, {0: range(steps)})
    after = runs[0].predict(0, 1)
    assert not torch.allclose(before.log_probs("qa"), after.log_probs("qa"), atol=1e-3)
    second = copy.deepcopy(runs[1])
    (figures,) = small.train(runs, {1: range(1)})
    second.forward(0)
    assert second.backward(0, [after.targets()]) == figures[1]


def test_the_waiting_student_predicts_without_dropout_and_is_unchanged() -> None:
    runs = begun(experiment(dropout=0.5))
    model = runs[1].learner.model
    waiting = copy.deepcopy(model.state_dict())
    assert all(
        torch.equal(a, b) for a, b in zip(*(runs[1].predict(0, 0).logits.values() for _ in range(2)), strict=True)
    )
    small.train(runs, {0: range(3)})
    assert all(torch.equal(weights, waiting[name]) for name, weights in model.state_dict().items())
    assert model.training


def test_each_student_has_its_own_order_and_the_other_predicts_its_batches() -> None:
    runs = begun(experiment())
    orders = [np.concatenate([one.sampler.indices(step) for step in range(3)]).tolist() for one in runs]
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(9))
    # The waiting student predicts the batch of the learning one, not its own next batch.
    for me, other in ((0, 1), (1, 0)):
        sent = runs[other].predict(0, me)
        own = runs[me].forward(0)
        assert {head: values.shape for head, values in sent.logits.items()} == {
            h: v.shape for h, v in own.logits.items()
        }


def test_students_that_learn_simultaneously_share_one_order() -> None:
    runs = begun(experiment(distillation={"schedule": "simultaneous"}))
    orders = [[one.sampler.indices(step).tolist() for step in range(6)] for one in runs]
    assert orders[0] == orders[1]


def test_averaging_over_the_vocabulary_divides_the_divergence_by_its_size() -> None:
    """For equal batch and temperature, the term of the loss is smaller by the size of the vocabulary.

    Source: REFERENCE.md#l4-released.
    """
    terms = {}
    for average in ("token", "vocabulary"):
        runs = begun(experiment(distillation={"average": average}), current=3, replayed=0)
        (figures,) = small.train(runs, {0: range(1)})
        one = figures[0]
        terms[average] = one["loss"] - one["nll_qa"] - LM_WEIGHT * one["nll_lm"]
        assert one["kd_qa"] > 0.1, "the figure is per token either way"
    size = small.tokenizer().size
    assert terms["token"] == pytest.approx(terms["vocabulary"] * size, rel=2e-2)  # a small difference of large numbers
