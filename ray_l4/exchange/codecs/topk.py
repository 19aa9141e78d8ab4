"""The largest probabilities of each position, and what all other tokens have together."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ray_l4.exchange.codecs.payload import Payload, of_heads
from ray_l4.exchange.codecs.rows import softened_rows
from ray_l4.learner.predictions import Predictions
from ray_l4.losses.targets import Targets, TopKTargets

_NAMES = ("ids", "log_probs", "rest")


class TopK:
    """Of every position the k largest log-probabilities at the temperature of the divergence, with their ids (int32),
    and the log of the remaining mass: 8 k + 4 bytes. All there are, if the vocabulary has fewer than k.
    """

    def __init__(self, k: int, temperature: float) -> None:
        self._k = k
        self._temperature = temperature

    def encode(self, predictions: Predictions, seed: int) -> Payload:
        sent = {}
        for head, logits_KV in predictions.logits.items():
            parts = [self._largest(part_MV) for _, part_MV in softened_rows(logits_KV, self._temperature)]
            for name, pieces in zip(_NAMES, zip(*parts, strict=True), strict=True):
                sent[f"{head}/{name}"] = torch.cat(pieces)
        return Payload("topk", sent)

    def decode(self, payload: Payload) -> dict[str, Targets]:
        return {
            head: TopKTargets(ids_KJ, log_probs_KJ, rest_K, self._temperature)
            for head, (ids_KJ, log_probs_KJ, rest_K) in of_heads(payload, *_NAMES).items()
        }

    def _largest(self, log_probs_MV: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Ids and log-probabilities, both (M, k), and the log of the mass of all others, (M,)."""
        log_probs_MJ, ids_MJ = log_probs_MV.topk(min(self._k, log_probs_MV.shape[-1]), dim=-1)
        # Summed up, not taken as 1 minus the others: of that difference rounding may leave nothing, or less.
        rest_M = log_probs_MV.scatter(-1, ids_MJ, -math.inf).logsumexp(dim=-1)
        return ids_MJ.int(), log_probs_MJ, rest_M
