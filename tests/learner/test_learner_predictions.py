"""Logits that are computed when they are asked for, and not after the update of their step."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from ray_l4.errors import PeerError
from ray_l4.learner.learner import Learner
from ray_l4.learner.predictions import ComputedLogits, OutputLayer
from ray_l4.learner.sharding import ALONE
from ray_l4.learner.stage_run import StageRun
from tests.learner import learner_fixtures as small


def run_of(micro_batch: int | None) -> StageRun:
    tok = small.tokenizer()
    config = small.experiment()
    (own, *_) = small.peers(config, tok)
    learner = Learner(0, own.model, tok, config, own.method, ALONE, micro_batch)
    return learner.begin_stage(1, small.tokens(tok))


def test_logits_are_computed_once_and_only_when_asked_for() -> None:
    torch.manual_seed(0)
    hidden_KD, weight_VD = torch.randn(3, 4), torch.randn(5, 4)
    logits = ComputedLogits({"qa": hidden_KD, "lm": hidden_KD[:1]}, OutputLayer(weight_VD, None))
    assert (len(logits), list(logits), logits.computed) == (2, ["qa", "lm"], {})
    torch.testing.assert_close(logits["qa"], hidden_KD @ weight_VD.T)
    assert logits["qa"] is logits["qa"]
    assert list(logits.computed) == ["qa"]
    logits.expire()
    assert len(logits["qa"]) == 3, "what has been computed stays"
    with pytest.raises(PeerError, match="head lm were asked for after the update"):
        logits["lm"]


@pytest.mark.parametrize("micro_batch", [None, 2])
def test_logits_cannot_be_asked_for_after_the_update(micro_batch: int | None) -> None:
    """They would be those of old hidden states and new weights."""
    run = run_of(micro_batch)
    predictions = run.forward(0)
    assert len(predictions.logits["qa"]) > 0
    run.backward(0, [])
    with pytest.raises(PeerError, match="head lm were asked for after the update"):
        predictions.logits["lm"]


def test_the_logits_of_several_micro_batches_are_not_kept_for_the_backward_pass() -> None:
    run = run_of(micro_batch=2)
    predictions = run.forward(0)
    alive = weakref.ref(predictions.logits["qa"])
    del predictions
    gc.collect()
    assert alive() is None
    assert run.backward(0, [])["loss"] > 0
