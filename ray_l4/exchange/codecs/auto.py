"""A codec that uses ``dense`` or ``factored``, whichever sends fewer bytes in a step."""

from __future__ import annotations

from ray_l4.exchange.codecs.dense import Dense
from ray_l4.exchange.codecs.factored import Factored
from ray_l4.exchange.codecs.payload import Codec, Payload
from ray_l4.learner.predictions import Predictions
from ray_l4.losses.targets import Targets


class Auto:
    """Uses ``dense`` for few positions and ``factored`` for many, or always ``dense`` if the model requires it.

    For K positions, V tokens and a width of d, all in float32, ``factored`` is smaller if K > V d / (V - d).
    """

    def __init__(self, dense: Dense, factored: Factored) -> None:
        self._dense = dense
        self._factored = factored

    def encode(self, predictions: Predictions, seed: int) -> Payload:
        factored = self._factored.num_bytes(predictions)
        smaller = factored is not None and factored < self._dense.num_bytes(predictions)
        return (self._factored if smaller else self._dense).encode(predictions, seed)

    def decode(self, payload: Payload) -> dict[str, Targets]:
        codecs: dict[str, Codec] = {"dense": self._dense, "factored": self._factored}
        return codecs[payload.codec].decode(payload)
