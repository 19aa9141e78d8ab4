"""Outputs of a model at chosen positions only."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ray_l4.learner.packing import Arithmetic, run_packed, use_packed_attention
from ray_l4.learner.predictions import OutputLayer
from ray_l4.learner.sequences import Sequences

_PROBE_LENGTH = 4
_PROBE_SCALE = 1e3
_PROBE_TOLERANCE = 1e-3


class Traits(NamedTuple):
    """What ``PositionLogits`` has to know of a model."""

    direct: bool
    """Whether its logits are a single matrix product of its last hidden states."""
    packed: bool
    """Whether it runs sequences one after another without padding (``learner.packing``)."""


class Outputs(NamedTuple):
    """Outputs of a model at N positions, with their graph: the hidden states, or the logits."""

    hidden_ND: Tensor | None
    """Inputs of the output layer (N, width); None if ``PositionLogits.output_layer`` is None."""
    logits_NV: Tensor | None
    """(N, vocab) in that case; otherwise None, as they are better computed a few positions at a time."""


class PositionLogits(nn.Module):
    """A model at chosen positions only: (rows, time) token ids and (N,) flat positions -> hidden states or logits.

    Few positions of a batch bear a loss, and the output matrix is the model's largest, so hidden states are selected
    before they are multiplied by it. This requires a model whose logits are a single matrix product of its last hidden
    states. Any other model (one that scales or soft-caps its logits) first computes the logits of all positions.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        traits: Traits | None = None,
        arithmetic: Arithmetic = nullcontext,
    ) -> None:
        """Wrap ``model``, and switch its attention to that of packed sequences if it can.

        ``traits``: if None, the model is run on a few tokens to find out, which requires real weights (not on the meta
        device). ``arithmetic``: context of its matrix products.
        """
        super().__init__()
        self.model = model
        found = traits or Traits(logits_are_one_product(model), use_packed_attention(model, arithmetic))
        self.direct, self.packed = found
        self.sharded = False
        """Whether weights are whole only while ``forward`` runs; it then returns logits."""
        self._arithmetic = arithmetic

    @property
    def head(self) -> nn.Linear | None:
        """The layer that maps hidden states to logits; None unless ``direct``, or if adapters or shards replace it."""
        head = self.model.get_output_embeddings()
        whole = self.direct and type(head) is nn.Linear and not self.sharded
        return head if whole else None

    @property
    def output_layer(self) -> OutputLayer | None:
        """The same layer, without a graph and in the type of the matrix products."""
        head = self.head
        if head is None:
            return None
        with self._arithmetic():
            device = head.weight.device.type
            narrow = torch.is_autocast_enabled(device)
            dtype = torch.get_autocast_dtype(device) if narrow else head.weight.dtype
        bias_V = None if head.bias is None else head.bias.detach().to(dtype)
        return OutputLayer(head.weight.detach().to(dtype), bias_V)

    def forward(self, input_ids_RT: Tensor, positions_N: Tensor, lengths: Sequence[int]) -> Outputs:
        """Run the model on ``input_ids_RT``, of which row i has ``lengths[i]`` tokens and padding after them."""
        with self._arithmetic():
            return self._outputs(input_ids_RT, positions_N, lengths)

    def _outputs(self, input_ids_RT: Tensor, positions_N: Tensor, lengths: Sequence[int]) -> Outputs:
        run = self.model.base_model if self.direct else self.model
        if self.packed:
            ids_1S, positions_N = _packed(input_ids_RT, positions_N, lengths)
            found = run_packed(run, ids_1S, Sequences(lengths, input_ids_RT.device))
        else:
            # No mask: sequences are padded on the right and attention is causal, so scored positions see no padding.
            found = run(input_ids=input_ids_RT, use_cache=False)
        if not self.direct:
            return Outputs(None, found.logits.flatten(0, 1)[positions_N])
        hidden_ND = found.last_hidden_state.flatten(0, 1)[positions_N]
        if self.head is None:
            return Outputs(None, self.model.get_output_embeddings()(hidden_ND))
        return Outputs(hidden_ND, None)


def _packed(input_ids_RT: Tensor, positions_N: Tensor, lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return the ids without padding, (1, num_tokens), and the places of the positions among them."""
    width = input_ids_RT.shape[1]
    device = input_ids_RT.device
    starts = [row * width for row in range(len(lengths))]
    tokens_S = torch.cat([torch.arange(at, at + own) for at, own in zip(starts, lengths, strict=True)])
    tokens_S = tokens_S.to(device, non_blocking=True)
    place_of = torch.zeros(input_ids_RT.numel(), dtype=torch.int64, device=device)
    place_of[tokens_S] = torch.arange(len(tokens_S), device=device)
    return input_ids_RT.flatten()[tokens_S][None], place_of[positions_N]


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
