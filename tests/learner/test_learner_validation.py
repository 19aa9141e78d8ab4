"""The validation loss of a model: a plain mean over tokens, without dropout, in batches of any size."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from ray_l4.learner.learner import Learner
from ray_l4.learner.models import build_model
from ray_l4.learner.validation import validation_loss
from ray_l4.methods import get_method
from ray_l4.text.assembly import assemble
from tests.learner import learner_fixtures as small

TOKENS, _ = assemble(small.examples("a", 11), small.tokenizer(), 64)


def learner(micro_batch: int | None = None, **training: object) -> Learner:
    config = small.experiment(training={"epochs": 2, "batch_size": 4, **training})
    model = build_model(config.model, small.tokenizer(), 0)
    return Learner(0, model, small.tokenizer(), config, get_method("l4"), micro_batch=micro_batch)


def plain_loss(own: Learner) -> float:
    """The plain twin: one example at a time, its answer and EOS token by token."""
    losses = []
    own.model.eval()
    for row in TOKENS.to_pylist():
        ids, first = row["ids"], row["prompt_length"]
        with torch.no_grad():
            logits_TV = own.model(input_ids=torch.tensor([ids])).logits[0]
        targets = torch.tensor([*ids[first:], small.tokenizer().eos])
        losses += functional.cross_entropy(logits_TV[first - 1 :], targets, reduction="none").tolist()
    return sum(losses) / len(losses)


@pytest.mark.parametrize(
    ("micro_batch", "training"), [(None, {}), (1, {}), (3, {"batch_size": 7}), (None, {"batch_budget": 60.0})]
)
def test_it_is_the_mean_over_all_answer_tokens(micro_batch: int | None, training: dict[str, object]) -> None:
    own = learner(micro_batch, **training)
    assert validation_loss(own, TOKENS) == pytest.approx(plain_loss(own), rel=1e-5)


def test_it_leaves_the_model_and_its_training_as_they_were() -> None:
    own, other = learner(), learner()
    runs = [each.begin_stage(0, TOKENS) for each in (own, other)]
    for step in range(3):
        validation_loss(own, TOKENS)
        assert own.model.training
        for run in runs:
            run.forward(step)
            run.backward(step, [])
    assert (own.weights() == other.weights()).all(), "dropout included"
    assert validation_loss(own, TOKENS) == validation_loss(other, TOKENS)
