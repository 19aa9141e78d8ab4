"""Probabilities that the link sums over all peers."""

from __future__ import annotations

from ray_l4.exchange.codecs.payload import Payload
from ray_l4.learner.predictions import Predictions
from ray_l4.losses.targets import ProbabilityTargets, Targets, softened


class Mean:
    """Sends float32 probabilities (K, vocab) for every head, at the temperature of the divergence.

    A student receives the mean of the *other* peers: the sum over all, minus its own. The error of that difference,
    about 1e-7 of the largest term, does not matter to the gradient q - p, but would to the logarithm of a smaller p.
    So this codec serves KL(teacher || student) only.
    """

    def __init__(self, temperature: float) -> None:
        self._temperature = temperature

    def encode(self, predictions: Predictions, seed: int) -> Payload:
        return Payload(
            "mean", {head: softened(own, self._temperature).exp_() for head, own in predictions.logits.items()}
        )

    def decode(self, payload: Payload) -> dict[str, Targets]:
        return {head: ProbabilityTargets(own, self._temperature) for head, own in payload.tensors.items()}
