"""Probabilities, to be summed over all peers on their way."""

from __future__ import annotations

from ray_l4.exchange.codecs.payload import Payload
from ray_l4.learner.predictions import Predictions
from ray_l4.losses.targets import ProbabilityTargets, Targets, softened


class Mean:
    """Probabilities (K, vocab) of every head at the temperature of the divergence: 4 bytes an entry.

    What is read is the mean of the *other* peers': the sum over all, without one's own. That difference is off by about
    1e-7 of the largest term, which is nothing to a gradient q - p, but everything to the logarithm of a p below it:
    this codec serves KL(teacher || student) alone.
    """

    def __init__(self, temperature: float) -> None:
        self._temperature = temperature

    def encode(self, predictions: Predictions, seed: int) -> Payload:
        return Payload(
            "mean", {head: softened(own, self._temperature).exp_() for head, own in predictions.logits.items()}
        )

    def decode(self, payload: Payload) -> dict[str, Targets]:
        return {head: ProbabilityTargets(own, self._temperature) for head, own in payload.tensors.items()}
