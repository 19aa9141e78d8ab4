"""Tokens drawn from each position's distribution."""

from __future__ import annotations

import torch
from torch import Tensor

from ray_l4.exchange.codecs.payload import Payload, of_heads
from ray_l4.exchange.codecs.rows import softened_rows
from ray_l4.learner.predictions import Predictions
from ray_l4.losses.targets import SampledTargets, Targets
from ray_l4.seeds import derive


class Sampled:
    """Of every position n ids (int32) from its distribution at the temperature of the divergence: 4 n bytes.

    The draws are stratified: one from each n-th part of the cumulative distribution. A token's expected share of them
    is its probability p just as with independent draws, hence the gradient of KL(teacher || student), linear in the
    target, is unbiased; but the variance of that share is never larger (Cochran 1977, Sampling Techniques, 5.6), and a
    token is drawn at least floor(n p) - 1 times. Every draw weighs 1 / n, so no weights are sent.
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
        return {head: SampledTargets(ids_KS, self._temperature) for head, (ids_KS,) in of_heads(payload, "ids").items()}

    def _points(self, num_positions: int, generator: torch.Generator) -> Tensor:
        """One point in each of n equal parts of [0, 1), for every position: (K, n) float64."""
        shape, device = (num_positions, self._num_draws), generator.device
        within_KS = torch.rand(shape, dtype=torch.float64, generator=generator, device=device)
        return (torch.arange(self._num_draws, device=device) + within_KS) / self._num_draws


def _tokens_at(points_MS: Tensor, log_probs_MV: Tensor) -> Tensor:
    """The tokens whose part of the cumulative distribution holds the points: (M, n) int32."""
    # float64: a float32 sum near 1 does not move by a probability below 3e-8, and such tokens are most of the tail.
    cumulative_MV = log_probs_MV.exp().cumsum(dim=-1, dtype=torch.float64)
    # "right": a token of no probability covers no point. A product rounded up to the very end has no token after it.
    ids_MS = torch.searchsorted(cumulative_MV, points_MS * cumulative_MV[:, -1:], right=True)
    return ids_MS.clamp_(max=log_probs_MV.shape[-1] - 1).int()
