"""Codecs as profiles select them, and predictions for them to encode."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor

from ray_l4.config.cluster import ExchangeConfig
from ray_l4.exchange.codecs import Codec, Payload, build_codec
from ray_l4.exchange.links import ByReference
from ray_l4.learner.predictions import OutputLayer, Predictions
from ray_l4.losses.targets import Targets
from tests.learner import learner_fixtures as small

CPU = torch.device("cpu")
TEMPERATURE = 2.0

SETTINGS: dict[str, dict[str, object]] = {
    "dense": {},
    "dense float16": {"precision": "float16"},
    "factored": {},
    "auto": {},
    "auto float16": {"precision": "float16"},
    "topk 1": {"top_k": 1},
    "topk 3": {"top_k": 3},
    "topk 100": {"top_k": 100},
    "sampled 1": {"samples": 1},
    "sampled 7": {"samples": 7},
    "mean": {},
}
"""All codecs, with settings below and above the size of the vocabularies here."""


def codec(name: str, *, direction: str = "forward", precision: str = "float32") -> Codec:
    """Build a codec of ``SETTINGS``. ``precision``: that of the model's arithmetic."""
    model = small.experiment().model.model_dump(exclude_unset=True)
    experiment = small.experiment(
        model=model | {"precision": precision}, distillation={"direction": direction, "temperature": TEMPERATURE}
    )
    return build_codec(ExchangeConfig.model_validate({"codec": name.split()[0], **SETTINGS[name]}), experiment)


# Logits (positions, vocab) in a range wider than that of GPT-2, whose logits are around -30 to -100.
logits = arrays.arrays(
    np.float32,
    st.tuples(st.integers(0, 5), st.integers(1, 40)),
    elements=st.floats(-200, 200, width=32),
)


def predictions_of(**heads: Tensor) -> Predictions:
    """Make predictions with these logits, by head; the output matrix is the identity."""
    own = {head: logits_KV.clone() for head, logits_KV in heads.items()}
    vocab = next(iter(heads.values())).shape[-1] if heads else 1
    return Predictions(
        own, {head: logits_KV.clone() for head, logits_KV in heads.items()}, OutputLayer(torch.eye(vocab), None)
    )


def write_protected(payload: Payload) -> Payload:
    """Copy a payload into write-protected memory, as the object store returns it."""
    link = ByReference(0, CPU)
    ticket = link.publish(payload, [1], at_once=False)
    for _, array in ticket.content.values():
        array.setflags(write=False)
    (received,) = link.collect([ticket])
    return received


def round_trip(own: Codec, predictions: Predictions, seed: int = 0) -> dict[str, Targets]:
    """Encode predictions, transfer the payload and decode it."""
    return own.decode(write_protected(own.encode(predictions, seed)))


def softened(targets: Targets, student_KV: Tensor) -> Tensor:
    """Return the targets' softened log-probabilities at all positions."""
    return targets.log_probs(slice(0, targets.num_positions), student_KV, TEMPERATURE)
