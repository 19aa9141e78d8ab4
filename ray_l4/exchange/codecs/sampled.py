"""Tokens drawn from each position's distribution."""

from __future__ import annotations

import torch
from torch import Tensor

from ray_l4.exchange.codecs.payload import Payload, tensors_by_head
from ray_l4.exchange.codecs.rows import softened_rows
from ray_l4.learner.predictions import Predictions
from ray_l4.losses.targets import SampledTargets, Targets
from ray_l4.seeds import derive


class Sampled:
    """Sends n token ids (int32) for every position, drawn from its distribution at the divergence's temperature.

    The draws are stratified: one from each n-th part of the cumulative distribution. A token's expected share of the
    draws is its probability p, as with independent draws, so the gradient of KL(teacher || student), which is linear in
    the target, is unbiased. But the variance of that share is never larger (Cochran 1977, Sampling Techniques, 5.6),
    and a token is drawn at least floor(n p) - 1 times. Every draw has weight 1 / n, so no weights are sent.
    """

    def __init__(self, num_draws: int, temperature: float) -> None:
        self._num_draws = num_draws
        self._temperature = temperature

    def encode(self, predictions: Predictions, seed: int) -> Payload:
        sent = {}
        for head, logits_KV in predictions.logits.items():
            generator = torch.Generator(logits_KV.device).manual_seed(derive(seed, head))
            points_KS = self._points(len(logits_KV), generator)
            parts = [
                _tokens_at(points_KS[rows], log_probs_MV)
                for rows, log_probs_MV in softened_rows(logits_KV, self._temperature)
            ]
            sent[f"{head}/ids"] = torch.cat(parts)
        return Payload("sampled", sent)

    def decode(self, payload: Payload) -> dict[str, Targets]:
        return {
            head: SampledTargets(ids_KS, self._temperature)
            for head, (ids_KS,) in tensors_by_head(payload, "ids").items()
        }

    def _points(self, num_positions: int, generator: torch.Generator) -> Tensor:
        """Draw a point in each of n equal parts of [0, 1) for every position: (K, n) float64."""
        shape, device = (num_positions, self._num_draws), generator.device
        within_KS = torch.rand(shape, dtype=torch.float64, generator=generator, device=device)
        return (torch.arange(self._num_draws, device=device) + within_KS) / self._num_draws


def _tokens_at(points_MS: Tensor, log_probs_MV: Tensor) -> Tensor:
    """Return the tokens whose intervals of the cumulative distribution contain the points: (M, n) int32."""
    # float64: adding a probability below 3e-8 does not change a float32 sum near 1, and most of the tail is smaller.
    cumulative_MV = log_probs_MV.exp().cumsum(dim=-1, dtype=torch.float64)
    # "right" never selects a token of probability 0. A point rounded up to the total would lie after the last token.
    ids_MS = torch.searchsorted(cumulative_MV, points_MS * cumulative_MV[:, -1:], right=True)
    return ids_MS.clamp_(max=log_probs_MV.shape[-1] - 1).int()
