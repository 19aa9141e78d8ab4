"""A peer's model as one of its ranks runs it, and what the peer learns with. It knows nothing of stages or steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

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
    """The model of one peer, with the experiment and the method it is trained by."""

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
        """Wrap ``model`` as ``sharding`` splits it over the student's ranks.

        ``micro_batch``: the number of examples that a rank runs at a time; None for its whole share of a batch.
        """
        self.peer = peer
        self.model = model
        self.tokenizer = tokenizer
        self.experiment = experiment
        self.method = method
        self.sharding = sharding
        self.micro_batch = micro_batch
        self._position_logits = sharding.wrap(model)
        self.device = model.device

    @property
    def output_layer(self) -> OutputLayer | None:
        """The matrix that makes logits of hidden states; None where the model does more, or wraps or shards it."""
        return self._position_logits.output_layer

    def outputs(self, batch: Batch) -> dict[Head, Outputs]:
        """Run the model, keeping the graph; returns head -> outputs at its N positions that bear a target."""
        positions_N = torch.cat([positions.positions_N for positions in batch.heads.values()])
        sizes = [len(positions.positions_N) for positions in batch.heads.values()]
        with arithmetic(self.experiment.model, self.device):
            logits_NV, hidden_ND = self._position_logits(batch.input_ids_RT, positions_N)
        hidden = hidden_ND.split(sizes) if hidden_ND is not None else [None] * len(sizes)
        outputs = map(Outputs, logits_NV.split(sizes), hidden)
        return dict(zip(batch.heads, outputs, strict=True))

    def logits(self, batch: Batch) -> dict[Head, Tensor]:
        """Run the model, keeping the graph; returns head -> logits (N, vocab) at its positions that bear a target."""
        return {head: outputs.logits_NV for head, outputs in self.outputs(batch).items()}

    def weights(self) -> np.ndarray:
        """Return the whole model's weights as safetensors bytes (uint8).

        If the student spans several ranks, all of them must be asked; the first one returns the weights.
        """
        return self.sharding.weights(self.model)

    def load(self, weights: np.ndarray) -> None:
        """Load what ``weights`` returned. Raises ModelError if it is damaged or does not fit the model."""
        self.sharding.load(self.model, weights)
