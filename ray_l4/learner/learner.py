"""One peer in one process: forward, loss, update. No Ray; whoever calls the two methods moves the predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from transformers import PreTrainedModel

from ray_l4.config.experiment import ExperimentConfig
from ray_l4.errors import PeerError
from ray_l4.learner.models import PositionLogits, arithmetic, to_bytes
from ray_l4.learner.optim import build_optimizer
from ray_l4.learner.schedule import learning_rate
from ray_l4.losses.objective import Denominators, HeadLoss, ObjectiveSpec, head_gradient
from ray_l4.methods import Head, Method, Topology
from ray_l4.seeds import derive
from ray_l4.text.batches import Batch, build_batch
from ray_l4.text.sampler import Sampler
from ray_l4.text.tokenizer import TaskTokenizer
from ray_l4.text.tokens import sequence_lengths

Predictions = Mapping[str, Tensor]
"""Head -> log-probabilities (K, vocab) at the K positions that bear distillation."""


@dataclass
class _Pending:
    """What a step keeps between its forward and its backward."""

    step: int
    batch: Batch
    denominators: dict[Head, Denominators]
    logits_NV: dict[Head, Tensor]


class Learner:
    """A student: its model, the stage it is in, and one step at a time.

    ``forward(step)`` and ``backward(step, targets)`` are called in turn for step 0, 1, 2, ... of a stage. The batch and
    the dropout of a step follow from (seed, peer, stage, step) alone, so a step can be repeated anywhere.
    """

    def __init__(
        self,
        peer: int,
        model: PreTrainedModel,
        tokenizer: TaskTokenizer,
        experiment: ExperimentConfig,
        method: Method,
        topology: Topology,
    ) -> None:
        self.peer = peer
        self.model = model
        self.tokenizer = tokenizer
        self.experiment = experiment
        self.method = method
        self.publishes = topology.teaches(peer)
        self.device = model.device
        self._position_logits = PositionLogits(model)
        self._spec = ObjectiveSpec(experiment.distillation.weight, experiment.distillation.temperature)
        self._next_step = 0
        self._pending: _Pending | None = None

    def begin_stage(self, stage: int, tokens: pa.Table) -> None:
        """Start learning ``tokens`` (current and replayed examples) with a fresh optimiser and schedule (SPEC 10.1)."""
        training = self.experiment.training
        self.stage = stage
        self.tokens = tokens
        self.sampler = Sampler(
            sequence_lengths(tokens),
            self.experiment.seed,
            stage,
            training.epochs,
            training.batch_size,
            training.batch_budget,
        )
        self.optimizer = build_optimizer(self.model, self.experiment.optim)
        self.model.train()
        self._next_step = 0
        self._pending = None

    def forward(self, step: int) -> Predictions:
        """Predictions of the step's batch; the graph is kept, and only what other peers need leaves.

        Raises PeerError if ``step`` is not the next one.
        """
        if step != self._next_step or self._pending is not None:
            raise PeerError(f"{self._where(step)}: asked for forward, but the next call is for step {self._next_step}")
        batch, denominators = self._batch(step)
        torch.manual_seed(derive(self.experiment.seed, "dropout", self.peer, self.stage, step))
        positions_N = torch.cat([batch.heads[head].positions_N for head in self.method.heads])
        sizes = [len(batch.heads[head].positions_N) for head in self.method.heads]
        with arithmetic(self.experiment.model, self.device):
            logits = self._position_logits(batch.input_ids_RT, positions_N).split(sizes)
        self._pending = _Pending(step, batch, denominators, dict(zip(self.method.heads, logits, strict=True)))
        if not self.publishes:
            return {}
        with torch.no_grad():
            return {
                head: torch.log_softmax(logits_NV[: batch.heads[head].num_current].float(), dim=-1)
                for head, logits_NV in self._pending.logits_NV.items()
            }

    def backward(self, step: int, targets: Sequence[Predictions]) -> dict[str, float]:
        """Learn from the labels and from ``targets``, the predictions of this peer's teachers for the same step.

        Returns figures of the step: losses per token, learning rate, gradient norm, samples and tokens.
        Raises PeerError if the step was not forwarded, or if its loss is not finite.
        """
        pending = self._pending
        if pending is None or pending.step != step:
            raise PeerError(f"{self._where(step)}: asked for backward before forward")
        config = self.experiment
        figures: dict[str, Tensor] = {}
        gradients: list[Tensor] = []
        total = torch.zeros((), device=self.device)
        for head in pending.logits_NV:
            losses, gradient_NV = self._head_gradient(pending, head, [target[head] for target in targets])
            weight = 1.0 if head == "qa" else config.training.lm_weight
            total = total + weight * losses.total
            gradients.append(gradient_NV.mul_(weight))
            figures |= {f"nll_{head}": losses.nll, f"kd_{head}": losses.kd}
        torch.autograd.backward(list(pending.logits_NV.values()), gradients)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.training.max_grad_norm)
        figures |= {"loss": total, "grad_norm": norm}
        values = dict(zip(figures, torch.stack([f.float() for f in figures.values()]).tolist(), strict=True))
        if not np.isfinite(values["loss"]) or not np.isfinite(values["grad_norm"]):
            raise PeerError(f"{self._where(step)}: loss or gradient is not finite ({values}); try a lower optim.lr")
        values["lr"] = self._update(step)
        values["samples"] = pending.batch.num_samples
        values["tokens"] = pending.batch.num_tokens
        self._pending = None
        self._next_step = step + 1
        return values

    def weights(self) -> np.ndarray:
        """The model's weights as safetensors bytes (uint8)."""
        return to_bytes(self.model)

    def _batch(self, step: int) -> tuple[Batch, dict[Head, Denominators]]:
        """The step's batch on the device, and what its losses are divided by, summed up before it goes there."""
        batch = build_batch(
            self.tokens,
            self.sampler.indices(step),
            self.method.heads,
            self.tokenizer,
            self.experiment.training.answer_token_weight,
        )
        if not self.method.uses_labels(self.stage):
            for positions in batch.heads.values():
                positions.weights_N[: positions.num_current] = 0.0
        denominators = {
            head: Denominators(nll=float(positions.weights_N.sum()), kd=float(positions.num_current))
            for head, positions in batch.heads.items()
        }
        return batch.to(self.device), denominators

    def _head_gradient(self, pending: _Pending, head: Head, teachers_KV: list[Tensor]) -> tuple[HeadLoss, Tensor]:
        positions = pending.batch.heads[head]
        return head_gradient(
            pending.logits_NV[head],
            positions.targets_N,
            positions.weights_N,
            positions.num_current,
            teachers_KV,
            self._spec,
            pending.denominators[head],
        )

    def _update(self, step: int) -> float:
        rate = learning_rate(
            self.sampler.samples_before(step),
            self.sampler.num_samples,
            self.experiment.training.epochs,
            self.experiment.optim,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return rate

    def _where(self, step: int) -> str:
        return f"student {self.peer}, stage {getattr(self, 'stage', '-')}, step {step}"
