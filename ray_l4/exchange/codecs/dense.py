"""Logits over the whole vocabulary, which are log-probabilities up to a constant."""

from __future__ import annotations

import torch

from ray_l4.exchange.codecs.payload import Payload
from ray_l4.learner.predictions import Predictions
from ray_l4.losses.targets import DenseTargets, Targets


class Dense:
    """Sends logits (K, vocab) for every head: exact in float32, or in float16.

    In float16 they are relative to the largest of their row, because the likely tokens matter most and float16 is
    finest near 0. The targets normalise them.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype

    def encode(self, predictions: Predictions, seed: int) -> Payload:
        sent = {}
        for head in predictions.logits:
            logits_KV = predictions.logits[head].float()
            if self._dtype == torch.float16:
                logits_KV = (logits_KV - logits_KV.amax(dim=-1, keepdim=True)).half()
            sent[head] = logits_KV
        return Payload("dense", sent)

    def decode(self, payload: Payload) -> dict[str, Targets]:
        return {head: DenseTargets(logits_KV) for head, logits_KV in payload.tensors.items()}

    def num_bytes(self, predictions: Predictions) -> int:
        """Return the size in bytes of the payload that ``encode`` would return."""
        return predictions.num_logits * self._dtype.itemsize
