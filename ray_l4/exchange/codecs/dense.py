"""Log-probabilities over the whole vocabulary."""

from __future__ import annotations

import torch

from ray_l4.exchange.codecs.payload import Payload
from ray_l4.learner.predictions import Predictions
from ray_l4.losses.targets import DenseTargets, Targets


class Dense:
    """Sends log-probabilities (K, vocab) for every head: exact in float32, or in float16.

    In float16 they are relative to the largest of their row, because the likely tokens matter most and float16 is
    finest near 0. The targets normalise them again.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype

    def encode(self, predictions: Predictions, seed: int) -> Payload:
        sent = {}
        for head in predictions.logits:
            log_probs_KV = predictions.log_probs(head)
            if self._dtype == torch.float16:
                log_probs_KV = (log_probs_KV - log_probs_KV.amax(dim=-1, keepdim=True)).half()
            sent[head] = log_probs_KV
        return Payload("dense", sent)

    def decode(self, payload: Payload) -> dict[str, Targets]:
        return {head: DenseTargets(log_probs_KV) for head, log_probs_KV in payload.tensors.items()}

    def num_bytes(self, predictions: Predictions) -> int:
        """Return the size in bytes of the payload that ``encode`` would return."""
        return sum(logits_KV.numel() for logits_KV in predictions.logits.values()) * self._dtype.itemsize
