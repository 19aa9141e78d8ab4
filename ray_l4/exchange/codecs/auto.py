"""Whichever of two codecs sends fewer bytes in a step."""

from __future__ import annotations

from ray_l4.exchange.codecs.dense import Dense
from ray_l4.exchange.codecs.factored import Factored
from ray_l4.exchange.codecs.payload import Codec, Payload
from ray_l4.learner.predictions import Predictions
from ray_l4.losses.targets import Targets


class Auto:
    """``dense`` for few positions, ``factored`` for many; ``dense`` always where the model allows nothing else.

    With float32 throughout and K positions, V tokens and a width of d, the second is smaller once K > V d / (V - d).
    """

    def __init__(self, dense: Dense, factored: Factored) -> None:
        self._dense = dense
        self._factored = factored

    def encode(self, predictions: Predictions, seed: int) -> Payload:
        factored = self._factored.num_bytes(predictions)
        smaller = factored is not None and factored < self._dense.num_bytes(predictions)
        return (self._factored if smaller else self._dense).encode(predictions, seed)

    def decode(self, payload: Payload) -> dict[str, Targets]:
        writers: dict[str, Codec] = {"dense": self._dense, "factored": self._factored}
        return writers[payload.codec].decode(payload)
