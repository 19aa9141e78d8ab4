"""One peer in one process: forward, loss, update. No Ray; whoever calls the two methods moves the predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from transformers import PreTrainedModel

from ray_l4.config.experiment import ExperimentConfig
from ray_l4.errors import PeerError
from ray_l4.learner.guards import Guard, build_guard
from ray_l4.learner.models import arithmetic, to_bytes
from ray_l4.learner.optim import build_optimizer
from ray_l4.learner.position_logits import Outputs, PositionLogits
from ray_l4.learner.predictions import NOTHING, Predictions
from ray_l4.learner.schedule import learning_rate
from ray_l4.losses.label_weights import label_weights
from ray_l4.losses.objective import Denominators, HeadLoss, ObjectiveSpec, head_gradient
from ray_l4.losses.targets import Targets
from ray_l4.methods import Method
from ray_l4.seeds import derive
from ray_l4.text.batches import Batch, HeadPositions, build_batch
from ray_l4.text.sampler import Sampler
from ray_l4.text.tokenizer import TaskTokenizer
from ray_l4.text.tokens import Head, sequence_lengths


@dataclass
class _Pending:
    """What a step keeps between its forward and its backward."""

    step: int
    batch: Batch
    denominators: dict[Head, Denominators]
    outputs: Mapping[Head, Outputs]


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
    ) -> None:
        self.peer = peer
        self.model = model
        self.tokenizer = tokenizer
        self.experiment = experiment
        self.method = method
        self.device = model.device
        self.guard: Guard | None = build_guard(method.guard)
        self._position_logits = PositionLogits(model)
        distillation = experiment.distillation
        self._spec = ObjectiveSpec(
            distillation.weight, distillation.temperature, distillation.direction, distillation.average
        )
        self._next_step = 0
        self._pending: _Pending | None = None

    def begin_stage(self, stage: int, tokens: pa.Table, memory: pa.Table | None = None) -> None:
        """Start learning ``tokens`` (current and replayed examples) with a fresh optimiser and schedule (SPEC 10.1).

        ``memory``: stored examples of earlier tasks, for a method that guards its gradients with them.
        """
        self.stage = stage
        self.tokens = tokens
        self.memory = memory
        self._samplers: dict[int, Sampler] = {}
        self.sampler = self._sampler_of(self.peer)
        self.optimizer = build_optimizer(self.model, self.experiment.optim)
        self.model.train()
        self._next_step = 0
        self._pending = None

    def forward(self, step: int, *, publish: bool = True) -> Predictions:
        """Predictions of the step's batch; the graph is kept, and only what other peers need leaves.

        Raises PeerError if ``step`` is not the next one.
        """
        if step != self._next_step or self._pending is not None:
            raise PeerError(f"{self._where(step)}: asked for forward, but the next call is for step {self._next_step}")
        batch, denominators = self._batch(self.sampler, step)
        torch.manual_seed(derive(self.experiment.seed, "dropout", self.peer, self.stage, step))
        outputs = self._outputs(batch)
        self._pending = _Pending(step, batch, denominators, outputs)
        return self._predictions(batch, outputs) if publish else NOTHING

    @torch.no_grad()
    def predict(self, step: int, student: int) -> Predictions:
        """Predictions for the batch of ``student``'s step, without dropout; nothing is learned from it."""
        was_training = self.model.training
        self.model.eval()
        batch, _ = self._batch(self._sampler_of(student), step)
        predictions = self._predictions(batch, self._outputs(batch))
        self.model.train(was_training)
        return predictions

    def backward(self, step: int, targets: Sequence[Mapping[str, Targets]]) -> dict[str, float]:
        """Learn from the labels and from ``targets``: head -> what a teacher says of the same step, of every teacher.

        Returns figures of the step: losses per token, learning rate, gradient norm, samples and tokens.
        Raises PeerError if the step was not forwarded, or if its loss is not finite.
        """
        pending = self._pending
        if pending is None or pending.step != step:
            raise PeerError(f"{self._where(step)}: asked for backward before forward")
        figures: dict[str, Tensor] = {}
        gradients: list[Tensor] = []
        total = torch.zeros((), device=self.device)
        for head in pending.outputs:
            losses, gradient_NV = self._head_gradient(pending, head, [target[head] for target in targets])
            weight = 1.0 if head == "qa" else self.experiment.training.lm_weight
            total = total + weight * losses.total
            gradients.append(gradient_NV.mul_(weight))
            figures |= {f"nll_{head}": losses.nll, f"kd_{head}": losses.kd}
        torch.autograd.backward([own.logits_NV for own in pending.outputs.values()], gradients)
        if self.guard is not None:
            figures["penalty"] = self.guard.restrain(self, step)
            total = total + figures["penalty"]
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.experiment.training.max_grad_norm)
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

    def logits(self, batch: Batch) -> dict[Head, Tensor]:
        """Head -> logits (N, vocab) at the positions of ``batch`` that bear a target, with their graph."""
        return {head: outputs.logits_NV for head, outputs in self._outputs(batch).items()}

    def _outputs(self, batch: Batch) -> dict[Head, Outputs]:
        positions_N = torch.cat([positions.positions_N for positions in batch.heads.values()])
        sizes = [len(positions.positions_N) for positions in batch.heads.values()]
        with arithmetic(self.experiment.model, self.device):
            logits_NV, hidden_ND = self._position_logits(batch.input_ids_RT, positions_N)
        hidden = hidden_ND.split(sizes) if hidden_ND is not None else [None] * len(sizes)
        outputs = map(Outputs, logits_NV.split(sizes), hidden)
        return dict(zip(batch.heads, outputs, strict=True))

    def weights(self) -> np.ndarray:
        """The model's weights as safetensors bytes (uint8)."""
        return to_bytes(self.model)

    def _sampler_of(self, student: int) -> Sampler:
        """The order in which ``student`` sees the examples: one for all, or its own where students learn in turn."""
        in_turn = self.experiment.distillation.schedule == "alternate_epochs"
        key = student if in_turn else 0
        if key not in self._samplers:
            training = self.experiment.training
            self._samplers[key] = Sampler(
                sequence_lengths(self.tokens),
                self.experiment.seed,
                self.stage,
                training.epochs,
                training.batch_size,
                training.batch_budget,
                order=(student,) if in_turn else (),
            )
        return self._samplers[key]

    def _batch(self, sampler: Sampler, step: int) -> tuple[Batch, dict[Head, Denominators]]:
        """The step's batch on the device, and what its losses are divided by, summed up before it goes there."""
        training = self.experiment.training
        batch = build_batch(
            self.tokens, sampler.indices(step), self.method.heads, self.tokenizer, training.answer_token_weight
        )
        heads, denominators = {}, {}
        for head, positions in batch.heads.items():
            current = self.method.uses_labels(self.stage, replay_in_batch=batch.num_current_samples < batch.num_samples)
            weights_N, divisor = label_weights(
                positions.weights_N, positions.num_current, current=current, means=training.means
            )
            heads[head] = replace(positions, weights_N=weights_N)
            denominators[head] = Denominators(nll=divisor, kd=float(self._num_distilled(positions)))
        return replace(batch, heads=heads).to(self.device), denominators

    def _num_distilled(self, positions: HeadPositions) -> int:
        """The first so many positions bear distillation."""
        follow_all = self.experiment.distillation.examples == "all"
        return len(positions.targets_N) if follow_all else positions.num_current

    def _predictions(self, batch: Batch, outputs: Mapping[Head, Outputs]) -> Predictions:
        distilled = {head: self._num_distilled(positions) for head, positions in batch.heads.items()}
        logits: dict[str, Tensor] = {}
        hidden: dict[str, Tensor] = {}
        for head, (logits_NV, hidden_ND) in outputs.items():
            logits[head] = logits_NV.detach()[: distilled[head]]
            if hidden_ND is not None:
                hidden[head] = hidden_ND.detach()[: distilled[head]]
        output = self._position_logits.output_layer
        return Predictions(logits, hidden, output) if output is not None else Predictions(logits)

    def _head_gradient(self, pending: _Pending, head: Head, teachers: list[Targets]) -> tuple[HeadLoss, Tensor]:
        positions = pending.batch.heads[head]
        for teacher in teachers:
            if teacher.num_positions != self._num_distilled(positions):
                raise PeerError(
                    f"{self._where(pending.step)}: a teacher speaks of {teacher.num_positions} positions of {head}; "
                    f"expected {self._num_distilled(positions)}. Are both at the same batch?"
                )
        return head_gradient(
            pending.outputs[head].logits_NV,
            positions.targets_N,
            positions.weights_N,
            self._num_distilled(positions),
            teachers,
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
