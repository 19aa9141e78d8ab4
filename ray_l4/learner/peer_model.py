"""A peer's model as one of its ranks runs it, and its guard, independent of stages and steps."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING

import torch

from ray_l4.learner.blocks import compiled_later
from ray_l4.learner.dropout import use_cheap_masks
from ray_l4.learner.guard_context import Guard
from ray_l4.learner.guards import build_guard
from ray_l4.learner.head_outputs import HeadOutputs, HiddenRows, WholeLogits
from ray_l4.learner.models import arithmetic
from ray_l4.learner.sharding import ALONE, Sharding
from ray_l4.methods import init_seed

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor
    from transformers import PreTrainedModel

    from ray_l4.config.experiment import ExperimentConfig
    from ray_l4.learner.predictions import OutputLayer
    from ray_l4.methods import Method
    from ray_l4.text.batches import Batch
    from ray_l4.text.heads import Head
    from ray_l4.text.tokenizer import TaskTokenizer


class PeerModel:
    """The model and the guard of one peer, with the experiment and the method that it is trained with."""

    def __init__(
        self,
        peer: int,
        model: PreTrainedModel,
        tokenizer: TaskTokenizer,
        experiment: ExperimentConfig,
        method: Method,
        sharding: Sharding = ALONE,
        micro_batch: int | None = None,
    ) -> None:
        """Wrap ``model``, which ``sharding`` splits over the peer's ranks.

        ``micro_batch``: the number of examples that a rank runs at a time; None for its whole share of a batch.
        """
        self.peer = peer
        self.model = model
        self.tokenizer = tokenizer
        self.experiment = experiment
        self.method = method
        self.sharding = sharding
        self.micro_batch = micro_batch
        self.guard: Guard | None = build_guard(method.guard)
        self.device = model.device
        use_cheap_masks(model)
        # Blocks are compiled before they are sharded, as PyTorch advises, but not for the tokens that probe a model.
        with compiled_later(model) if experiment.model.compile else nullcontext():
            self._position_logits = sharding.wrap(model, partial(arithmetic, experiment.model, self.device))

    @property
    def output_layer(self) -> OutputLayer | None:
        """The layer that maps hidden states to logits; None as for ``PositionLogits.output_layer``."""
        return self._position_logits.output_layer

    def outputs(self, batch: Batch) -> dict[Head, HeadOutputs]:
        """Run the model, keeping the graph; returns head -> outputs at the head's N positions."""
        positions_N = torch.cat([positions.positions_N for positions in batch.heads.values()])
        sizes = [len(positions.positions_N) for positions in batch.heads.values()]
        found = self._position_logits(batch.input_ids_RT, positions_N, batch.lengths)
        weights = [self.experiment.training.lm_weight if head == "lm" else 1.0 for head in batch.heads]
        layer, module = self._position_logits.output_layer, self._position_logits.head
        outputs: Sequence[HeadOutputs]
        if found.hidden_ND is None or layer is None or module is None:
            outputs = [WholeLogits(*own) for own in zip(found.logits_NV.split(sizes), weights, strict=True)]
        else:
            parts = zip(found.hidden_ND.split(sizes), weights, strict=True)
            outputs = [HiddenRows(hidden_ND, layer, module, weight) for hidden_ND, weight in parts]
        return dict(zip(batch.heads, outputs, strict=True))

    def logits(self, batch: Batch) -> dict[Head, Tensor]:
        """Run the model, keeping the graph; returns head -> logits (N, vocab) at the head's N positions."""
        with arithmetic(self.experiment.model, self.device):
            return {head: own.whole() for head, own in self.outputs(batch).items()}

    def weights(self) -> np.ndarray:
        """Return the whole model's weights as safetensors bytes (uint8).

        All ranks of a student must call this; the first one returns the weights.
        """
        return self.sharding.weights(self.model)

    def load(self, weights: np.ndarray) -> None:
        """Load what ``weights`` returned. Raises ModelError if it is damaged or does not fit the model.

        Tokens that have come since get new rows, drawn like the weights that the peer began with.
        """
        self.sharding.load(self.model, weights, init_seed(self.experiment, self.peer))
