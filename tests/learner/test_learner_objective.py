"""The gradient of the whole objective against a plain implementation that shares no code with the learner."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional

from ray_l4.learner.learner import Learner
from tests.learner import learner_fixtures as small

LAMBDA, TEMPERATURE, LM_WEIGHT, ANS_WEIGHT = 0.2, 2.0, 0.25, 5.0


def plain_sequences(row: dict[str, Any], tok: Any) -> dict[str, tuple[list[int], list[int]]]:
    """Inputs and targets of both heads, written out from SPEC 4; -1 is ignored."""
    ids, start = row["ids"], row["prompt_length"]
    answer = ids[start:]
    return {
        "qa": (ids, [-1] * (len(ids) - len(answer) - 1) + answer + [tok.eos]),
        "lm": ([row["gen"], *ids], [*ids, tok.eos]),
    }


def plain_loss(models: list[Any], me: int, rows: list[dict[str, Any]], tok: Any, labels: bool) -> torch.Tensor:
    """One sequence at a time, one forward pass a head, whole vocabulary everywhere (SPEC 5, 6, 20.3)."""
    loss = torch.zeros(())
    for head, head_weight in (("qa", 1.0), ("lm", LM_WEIGHT)):
        ce_sum, ce_weight, kd_sum, kd_count = torch.zeros(()), 0.0, torch.zeros(()), 0
        for row in rows:
            inputs, targets = plain_sequences(row, tok)[head]
            logits = models[me](input_ids=torch.tensor([inputs])).logits[0].float()
            with torch.no_grad():
                others = [
                    m(input_ids=torch.tensor([inputs])).logits[0].float() for i, m in enumerate(models) if i != me
                ]
            current = row["origin"] == "real"
            for position, target in enumerate(targets):
                if target == -1:
                    continue
                if labels or not current:
                    weight = ANS_WEIGHT if target == tok.ans else 1.0
                    ce_sum = ce_sum + weight * functional.cross_entropy(logits[position], torch.tensor(target))
                    ce_weight += weight
                if current and others:
                    teacher = torch.stack([(o[position] / TEMPERATURE).softmax(-1) for o in others]).mean(0)
                    student = (logits[position] / TEMPERATURE).log_softmax(-1)
                    kd_sum = kd_sum + (teacher * (teacher.log() - student)).sum()
                    kd_count += 1
        loss = loss + head_weight * (ce_sum / ce_weight if ce_weight else 0.0)
        if kd_count:
            loss = loss + head_weight * LAMBDA * TEMPERATURE**2 * kd_sum / kd_count
    return loss


def gradients_of_step(
    learners: list[Learner], step: int
) -> tuple[list[dict[str, float]], list[dict[str, torch.Tensor]]]:
    """Figures and raw gradients of a step; the update itself is left out so that the gradients can be read."""
    for learner in learners:
        learner._update = lambda step: 0.0  # type: ignore[method-assign]
    sent = [learner.forward(step) for learner in learners]
    figures, gradients = [], []
    for i, learner in enumerate(learners):
        teachers = [sent[j] for j in range(len(learners)) if j != i and learner.topology.edges]
        figures.append(learner.backward(step, teachers))
        gradients.append({name: p.grad.clone() for name, p in learner.model.named_parameters()})
    return figures, gradients


def no_dropout(**more: Any) -> Any:
    shape = {"layers": 2, "width": 32, "heads": 2, "positions": 64, "dropout": 0.0}
    return small.experiment(
        model={"from_scratch": shape, "precision": more.pop("precision", "float32")},
        training={"epochs": 2, "batch_size": 4, "max_grad_norm": 1e9},
        peers={"init": "own"},
        **more,
    )


@pytest.mark.parametrize(("method", "peers"), [("finetune", 1), ("lamol", 1), ("l4", 2), ("l4", 3), ("l4-eq12", 2)])
@pytest.mark.parametrize("replayed", [0, 3, 11])
def test_gradient_equals_the_plain_objective(method: str, peers: int, replayed: int) -> None:
    tok = small.tokenizer()
    table = small.tokens(tok, current=8, replayed=replayed)
    learners = small.peers(no_dropout(), tok, method, peers)
    for learner in learners:
        learner.begin_stage(1, table)
    rows = table.take(learners[0].sampler.indices(0)).to_pylist()
    figures, gradients = gradients_of_step(learners, 0)
    for me, learner in enumerate(learners):
        learner.model.zero_grad()
        expected = plain_loss([each.model for each in learners], me, rows, tok, labels=method != "l4-eq12")
        if method == "finetune":
            expected = finetune_loss(learner.model, rows, tok)
        if expected.requires_grad:
            expected.backward()
        assert figures[me]["loss"] == pytest.approx(expected.item(), rel=1e-5, abs=1e-7)
        scale = max(float(p.grad.norm()) for p in learner.model.parameters() if p.grad is not None)
        for name, p in learner.model.named_parameters():
            difference = (gradients[me][name] - p.grad).norm()
            assert difference <= 1e-5 * max(float(p.grad.norm()), 1e-3 * scale), name


def finetune_loss(model: Any, rows: list[dict[str, Any]], tok: Any) -> torch.Tensor:
    """The mean over answer tokens, nothing else."""
    losses = []
    for row in rows:
        inputs, targets = plain_sequences(row, tok)["qa"]
        logits = model(input_ids=torch.tensor([inputs])).logits[0]
        losses += [
            functional.cross_entropy(logits[i], torch.tensor(target))
            for i, target in enumerate(targets)
            if target != -1
        ]
    return torch.stack(losses).mean()


def test_bfloat16_gradient_is_that_of_the_plain_objective_within_its_precision() -> None:
    tok = small.tokenizer()
    table = small.tokens(tok)
    learners = small.peers(no_dropout(precision="bfloat16"), tok)
    for learner in learners:
        learner.begin_stage(1, table)
    rows = table.take(learners[0].sampler.indices(0)).to_pylist()
    figures, gradients = gradients_of_step(learners, 0)
    learners[0].model.zero_grad()
    expected = plain_loss([each.model for each in learners], 0, rows, tok, labels=True)
    expected.backward()
    assert figures[0]["loss"] == pytest.approx(expected.item(), rel=2e-2)
    assert figures[0]["loss"] != pytest.approx(expected.item(), rel=1e-6), "was it bfloat16 at all?"
    mine = torch.cat([g.float().flatten() for g in gradients[0].values()])
    plain = torch.cat([p.grad.float().flatten() for p in learners[0].model.parameters()])
    assert functional.cosine_similarity(mine, plain, dim=0) > 0.995


def test_published_predictions_are_the_current_positions_only() -> None:
    tok = small.tokenizer()
    learners = small.peers(small.experiment(), tok)
    table = small.tokens(tok)
    for learner in learners:
        learner.begin_stage(1, table)
    rows = table.take(learners[0].sampler.indices(0)).to_pylist()
    current = [row for row in rows if row["origin"] == "real"]
    sent = learners[0].forward(0)
    assert sent["qa"].shape == (sum(len(r["ids"]) - r["prompt_length"] + 1 for r in current), tok.size)
    assert sent["lm"].shape == (sum(len(r["ids"]) + 1 for r in current), tok.size)
    assert torch.allclose(sent["lm"].exp().sum(-1), torch.ones(len(sent["lm"])), atol=1e-5)
    assert not sent["qa"].requires_grad
