"""A peer's model as one of its ranks runs it, and its guard, independent of stages and steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ray_l4.learner.guards import Guard, build_guard
from ray_l4.learner.models import arithmetic
from ray_l4.learner.position_logits import Outputs
from ray_l4.learner.sharding import ALONE, Sharding

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
        self._position_logits = sharding.wrap(model)
        self.device = model.device

    @property
    def output_layer(self) -> OutputLayer | None:
        """The layer that maps hidden states to logits; None as for ``PositionLogits.output_layer``."""
        return self._position_logits.output_layer

    def outputs(self, batch: Batch) -> dict[Head, Outputs]:
        """Run the model, keeping the graph; returns head -> outputs at the head's N positions."""
        positions_N = torch.cat([positions.positions_N for positions in batch.heads.values()])
        sizes = [len(positions.positions_N) for positions in batch.heads.values()]
        with arithmetic(self.experiment.model, self.device):
            logits_NV, hidden_ND = self._position_logits(batch.input_ids_RT, positions_N)
        hidden = hidden_ND.split(sizes) if hidden_ND is not None else [None] * len(sizes)
        outputs = map(Outputs, logits_NV.split(sizes), hidden)
        return dict(zip(batch.heads, outputs, strict=True))

    def logits(self, batch: Batch) -> dict[Head, Tensor]:
        """Run the model, keeping the graph; returns head -> logits (N, vocab) at the head's N positions."""
        return {head: outputs.logits_NV for head, outputs in self.outputs(batch).items()}

    def weights(self) -> np.ndarray:
        """Return the whole model's weights as safetensors bytes (uint8).

        All ranks of a student must call this; the first one returns the weights.
        """
        return self.sharding.weights(self.model)

    def load(self, weights: np.ndarray) -> None:
        """Load what ``weights`` returned. Raises ModelError if it is damaged or does not fit the model."""
        self.sharding.load(self.model, weights)
