"""Logits of a model at chosen positions only."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from ray_l4.learner.predictions import OutputLayer

_PROBE_LENGTH = 4
_PROBE_SCALE = 1e3
_PROBE_TOLERANCE = 1e-3


class Outputs(NamedTuple):
    """Outputs of a model at N positions."""

    logits_NV: Tensor
    hidden_ND: Tensor | None
    """Inputs of the output layer (N, width); None if ``PositionLogits.direct`` is False."""


class PositionLogits(nn.Module):
    """Logits at chosen positions only: (rows, time) token ids and (N,) flat positions -> (N, vocab).

    Few positions of a batch bear a loss, and the output matrix is the model's largest, so hidden states are selected
    before they are multiplied by it. This requires a model whose logits are a single matrix product of its last hidden
    states. Any other model (one that scales or soft-caps its logits) first computes the logits of all positions.
    """

    def __init__(self, model: PreTrainedModel, *, direct: bool | None = None) -> None:
        """Wrap ``model``.

        ``direct``: whether its logits are a single matrix product of its last hidden states. If None, the model is run
        on a few tokens to find out, which requires real weights (not on the meta device).
        """
        super().__init__()
        self.model = model
        self.direct = logits_are_one_product(model) if direct is None else direct

    @property
    def output_layer(self) -> OutputLayer | None:
        """The layer that maps hidden states to logits; None unless ``direct``, or if adapters or shards replace it."""
        head = self.model.get_output_embeddings()
        whole = self.direct and type(head) is nn.Linear and not isinstance(head.weight, DTensor)
        return OutputLayer(head.weight.detach(), head.bias) if whole else None

    def forward(self, input_ids_RT: Tensor, positions_N: Tensor) -> Outputs:
        # No mask: sequences are padded on the right and attention is causal, so scored positions never see padding.
        if self.direct:
            hidden_RTD = self.model.base_model(input_ids=input_ids_RT, use_cache=False).last_hidden_state
            hidden_ND = hidden_RTD.flatten(0, 1)[positions_N]
            return Outputs(self.model.get_output_embeddings()(hidden_ND), hidden_ND)
        logits_RTV = self.model(input_ids=input_ids_RT, use_cache=False).logits
        return Outputs(logits_RTV.flatten(0, 1)[positions_N], None)


@torch.no_grad()
def logits_are_one_product(model: PreTrainedModel) -> bool:
    """Return whether ``model`` computes its logits as one matrix product of its last hidden states, by comparison."""
    head = model.get_output_embeddings()
    if head is None or model.base_model is model:
        return False
    was_training = model.training
    model.eval()
    probe_RT = torch.arange(_PROBE_LENGTH, device=model.device).unsqueeze(0)
    # Scaled up, because a soft cap would not change the small logits of an untrained model.
    hook = head.register_forward_hook(lambda module, inputs, logits: _PROBE_SCALE * logits)
    whole_TV = model(input_ids=probe_RT, use_cache=False).logits[0]
    hook.remove()
    hidden_TD = model.base_model(input_ids=probe_RT, use_cache=False).last_hidden_state[0]
    direct_TV = _PROBE_SCALE * head(hidden_TD)
    model.train(was_training)
    return torch.allclose(whole_TV.float(), direct_TV.float(), atol=_PROBE_TOLERANCE, rtol=_PROBE_TOLERANCE)
