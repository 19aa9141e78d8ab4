"""Hidden states and the output layer, which together give the log-probabilities over the whole vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor

from ray_l4.errors import ModelError
from ray_l4.exchange.codecs.payload import Payload, tensors_by_head
from ray_l4.learner.predictions import OutputLayer, Predictions
from ray_l4.losses.targets import FactoredTargets, Targets

_WEIGHT, _BIAS = "output/weight", "output/bias"


class Factored:
    """Sends, without loss, hidden states (K, width) for every head, the output matrix (vocab, width) and its bias."""

    def __init__(self, dtype: torch.dtype | None = None) -> None:
        """Send tensors as ``dtype``, the type of the model's matrix products; None if it is that of the weights.

        Autocast narrows both factors before it multiplies them, so sending the narrowed ones loses nothing.
        """
        self._dtype = dtype

    def encode(self, predictions: Predictions, seed: int) -> Payload:
        """Encode the predictions. Raises ModelError if they have no output layer (``PositionLogits.output_layer``)."""
        if predictions.output is None:
            raise ModelError(
                "exchange.codec: factored sends hidden states and the output matrix, but this model's logits are not "
                "simply their product (they are scaled or capped, or the matrix is wrapped by adapters or sharded "
                "over ranks); set exchange.codec: auto or dense"
            )
        sent = {f"{head}/hidden": self._copied(hidden_KD) for head, hidden_KD in predictions.hidden.items()}
        layer = {name: self._copied(own) for name, own in _parameters(predictions.output).items()}
        return Payload("factored", sent | layer)

    def decode(self, payload: Payload) -> dict[str, Targets]:
        layer = payload.tensors[_WEIGHT], payload.tensors.get(_BIAS)
        return {
            head: FactoredTargets(hidden_KD, *layer)
            for head, (hidden_KD,) in tensors_by_head(payload, "hidden").items()
        }

    def num_bytes(self, predictions: Predictions) -> int | None:
        """Return the size in bytes of the payload that ``encode`` would return; None if it would raise."""
        if predictions.output is None:
            return None
        own = [*predictions.hidden.values(), *_parameters(predictions.output).values()]
        return sum(tensor.numel() * (self._dtype or tensor.dtype).itemsize for tensor in own)

    def _copied(self, tensor: Tensor) -> Tensor:
        """Copy the tensor, because the model may be updated before a reader gets it."""
        dtype = self._dtype or tensor.dtype
        return tensor.detach().to(dtype, copy=True, memory_format=torch.contiguous_format)


def _parameters(output: OutputLayer) -> dict[str, Tensor]:
    bias = {} if output.bias_V is None else {_BIAS: output.bias_V}
    return {_WEIGHT: output.weight_VD} | bias
