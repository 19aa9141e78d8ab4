"""The largest probabilities of each position, and the total probability of all other tokens."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ray_l4.exchange.codecs.payload import Payload, tensors_by_head
from ray_l4.exchange.codecs.rows import softened_rows
from ray_l4.learner.predictions import Predictions
from ray_l4.losses.targets import Targets, TopKTargets

_NAMES = ("ids", "log_probs", "rest")


class TopK:
    """Sends the k largest log-probabilities of every position, their ids (int32), and the log of the remaining mass.

    They are taken at the temperature of the divergence: 8 k + 4 bytes per position. A vocabulary smaller than k is sent
    completely.
    """

    def __init__(self, k: int, temperature: float) -> None:
        self._k = k
        self._temperature = temperature

    def encode(self, predictions: Predictions, seed: int) -> Payload:
        sent = {}
        for head, logits_KV in predictions.logits.items():
            parts = [self._largest(part_MV) for _, part_MV in softened_rows(logits_KV, self._temperature)]
            for name, chunks in zip(_NAMES, zip(*parts, strict=True), strict=True):
                sent[f"{head}/{name}"] = torch.cat(chunks)
        return Payload("topk", sent)

    def decode(self, payload: Payload) -> dict[str, Targets]:
        return {
            head: TopKTargets(ids_KJ, log_probs_KJ, rest_K, self._temperature)
            for head, (ids_KJ, log_probs_KJ, rest_K) in tensors_by_head(payload, *_NAMES).items()
        }

    def _largest(self, log_probs_MV: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return ids and log-probabilities, both (M, k), and the log of the mass of all other tokens, (M,)."""
        log_probs_MJ, ids_MJ = log_probs_MV.topk(min(self._k, log_probs_MV.shape[-1]), dim=-1)
        # A sum, because rounding could make 1 minus the largest probabilities zero or negative.
        rest_M = log_probs_MV.scatter(-1, ids_MJ, -math.inf).logsumexp(dim=-1)
        return ids_MJ.int(), log_probs_MJ, rest_M
