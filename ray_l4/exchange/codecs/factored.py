"""Hidden states and the output layer, from which the log-probabilities over the whole vocabulary follow."""

from __future__ import annotations

import torch
from torch import Tensor

from ray_l4.errors import ModelError
from ray_l4.exchange.codecs.payload import Payload, of_heads
from ray_l4.learner.predictions import OutputLayer, Predictions
from ray_l4.losses.targets import FactoredTargets, Targets

_WEIGHT, _BIAS = "output/weight", "output/bias"


class Factored:
    """Hidden states (K, width) of every head, and once the output matrix (vocab, width) and its bias. Lossless.

    ``dtype`` is that of the model's matrix products if it is not that of the weights: autocast narrows both factors
    before it multiplies them, so that the narrowed ones are all there is to send.
    """

    def __init__(self, dtype: torch.dtype | None = None) -> None:
        self._dtype = dtype

    def encode(self, predictions: Predictions, seed: int) -> Payload:
        """Raises ModelError if the model's logits are more than one product of a matrix of its own."""
        if predictions.output is None:
            raise ModelError(
                "exchange.codec: factored sends hidden states and the output matrix, but this model's logits are not "
                "one plain product of the two (they are scaled or capped, or the matrix is wrapped by adapters or "
                "split over ranks); set exchange.codec: auto or dense"
            )
        sent = {f"{head}/hidden": self._copied(hidden_KD) for head, hidden_KD in predictions.hidden.items()}
        layer = {name: self._copied(own) for name, own in _parameters(predictions.output).items()}
        return Payload("factored", sent | layer)

    def decode(self, payload: Payload) -> dict[str, Targets]:
        layer = payload.tensors[_WEIGHT], payload.tensors.get(_BIAS)
        return {head: FactoredTargets(hidden_KD, *layer) for head, (hidden_KD,) in of_heads(payload, "hidden").items()}

    def num_bytes(self, predictions: Predictions) -> int | None:
        """Bytes of what ``encode`` would send; None where it would refuse."""
        if predictions.output is None:
            return None
        own = [*predictions.hidden.values(), *_parameters(predictions.output).values()]
        return sum(tensor.numel() * (self._dtype or tensor.dtype).itemsize for tensor in own)

    def _copied(self, tensor: Tensor) -> Tensor:
        """The values of this step: the model will have changed before they are read."""
        dtype = self._dtype or tensor.dtype
        return tensor.detach().to(dtype, copy=True, memory_format=torch.contiguous_format)


def _parameters(output: OutputLayer) -> dict[str, Tensor]:
    bias = {} if output.bias_V is None else {_BIAS: output.bias_V}
    return {_WEIGHT: output.weight_VD} | bias
