"""The loss on windows of general text, beside Transformers' own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import PreTrainedConfig, PreTrainedModel

from ray_l4.learner.general_text import window_losses
from ray_l4.learner.models import arithmetic, build_model
from tests.learner import architectures
from tests.learner import learner_fixtures as small

DRAW = np.random.default_rng(0)


def windows(vocabulary: int) -> list[np.ndarray]:
    return [DRAW.integers(0, vocabulary, length).astype(np.int32) for length in (2, 17, 64)]


def plain(model: PreTrainedModel, ids: np.ndarray) -> float:
    """The plain twin: Transformers' mean loss of a sequence, times the number of its predicted tokens."""
    ids_1T = torch.from_numpy(ids).long()[None]
    with torch.no_grad():
        return model(input_ids=ids_1T, labels=ids_1T).loss.item() * (len(ids) - 1)


@pytest.mark.parametrize(
    "config",
    [architectures.GPT2, architectures.LLAMA, architectures.NEOX, architectures.GRANITE, architectures.GEMMA2],
    ids=lambda config: config.model_type,
)
def test_it_is_the_loss_of_transformers(config: PreTrainedConfig) -> None:
    """Also where logits are scaled or capped."""
    model = architectures.untrained(config)
    own = [ids[:32] for ids in windows(architectures.VOCABULARY)]
    assert window_losses(model, own) == pytest.approx([plain(model, ids) for ids in own], rel=1e-5)


def test_it_is_measured_without_dropout_and_leaves_the_model_as_it_was() -> None:
    model = build_model(small.experiment().model, small.tokenizer(), 0)
    own = windows(model.config.vocab_size)
    model.eval()
    expected = [plain(model, ids) for ids in own]
    model.train()
    assert window_losses(model, own) == pytest.approx(expected, rel=1e-5)
    assert model.training


def test_rows_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model(small.experiment().model, small.tokenizer(), 0)
    own = windows(model.config.vocab_size)
    whole = window_losses(model, own)
    monkeypatch.setattr(
        "ray_l4.learner.general_text.row_chunks", lambda rows, vocab: [slice(i, i + 5) for i in range(0, rows, 5)]
    )
    assert window_losses(model, own) == pytest.approx(whole, rel=1e-6)


def test_in_bfloat16_the_losses_are_summed_in_float32() -> None:
    config = small.experiment(model={"from_scratch": small.experiment().model.from_scratch, "precision": "bfloat16"})
    model = build_model(config.model, small.tokenizer(), 0).eval()
    own = windows(model.config.vocab_size)
    exact = window_losses(model, own)
    with arithmetic(config.model, torch.device("cpu")):
        rounded = window_losses(model, own)
    assert rounded == pytest.approx(exact, rel=1e-2)
    assert rounded != exact
