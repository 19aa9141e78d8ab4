"""Logits where they are needed, and nowhere else."""

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
    """What a model says at N positions."""

    logits_NV: Tensor
    hidden_ND: Tensor | None
    """The states that the logits are one product of; None for a model that does more."""


class PositionLogits(nn.Module):
    """Logits at chosen positions only: (rows, time) tokens and (N,) flat positions -> (N, vocab).

    Of the positions of a batch few bear a loss, and the output matrix is the largest there is; so the hidden states are
    selected first. A model that does more than one matrix product after its last hidden state (scaling, soft-capping)
    is noticed on a probe when it is wrapped, and takes the longer way through its own head.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.direct = self._head_is_one_product()

    @property
    def output_layer(self) -> OutputLayer | None:
        """The matrix of that one product; None where there is no such product, or it is wrapped or sharded."""
        head = self.model.get_output_embeddings()
        whole = self.direct and type(head) is nn.Linear and not isinstance(head.weight, DTensor)
        return OutputLayer(head.weight.detach(), head.bias) if whole else None

    def forward(self, input_ids_RT: Tensor, positions_N: Tensor) -> Outputs:
        # Padding stands on the right and attention is causal, so no scored position can see it: no mask is needed.
        if self.direct:
            hidden_RTD = self.model.base_model(input_ids=input_ids_RT, use_cache=False).last_hidden_state
            hidden_ND = hidden_RTD.flatten(0, 1)[positions_N]
            return Outputs(self.model.get_output_embeddings()(hidden_ND), hidden_ND)
        logits_RTV = self.model(input_ids=input_ids_RT, use_cache=False).logits
        return Outputs(logits_RTV.flatten(0, 1)[positions_N], None)

    @torch.no_grad()
    def _head_is_one_product(self) -> bool:
        head = self.model.get_output_embeddings()
        if head is None or self.model.base_model is self.model:
            return False
        was_training = self.model.training
        self.model.eval()
        probe_RT = torch.arange(_PROBE_LENGTH, device=self.model.device).unsqueeze(0)
        # Enlarged, because a soft cap does nothing to the small logits of an untrained model.
        hook = head.register_forward_hook(lambda module, inputs, logits: _PROBE_SCALE * logits)
        whole_TV = self.model(input_ids=probe_RT, use_cache=False).logits[0]
        hook.remove()
        hidden_TD = self.model.base_model(input_ids=probe_RT, use_cache=False).last_hidden_state[0]
        direct_TV = _PROBE_SCALE * head(hidden_TD)
        self.model.train(was_training)
        return torch.allclose(whole_TV.float(), direct_TV.float(), atol=_PROBE_TOLERANCE, rtol=_PROBE_TOLERANCE)
