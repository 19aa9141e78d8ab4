"""One peer in one process: forward, loss, update. No Ray; whoever calls the two methods moves the predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from transformers import PreTrainedModel

from ray_l4.config.experiment import ExperimentConfig
from ray_l4.errors import PeerError
from ray_l4.learner.guards import Guard, build_guard
from ray_l4.learner.micro_batches import Piece, joined
from ray_l4.learner.models import arithmetic
from ray_l4.learner.optim import build_optimizer
from ray_l4.learner.position_logits import Outputs
from ray_l4.learner.predictions import NOTHING, Predictions
from ray_l4.learner.schedule import learning_rate
from ray_l4.learner.sharding import ALONE, Sharding, clip
from ray_l4.learner.steps import Step, Steps
from ray_l4.losses.objective import Denominators, ObjectiveSpec, head_gradient
from ray_l4.losses.targets import Targets
from ray_l4.methods import Method, peer_seed
from ray_l4.seeds import derive
from ray_l4.text.batches import Batch
from ray_l4.text.tokenizer import TaskTokenizer
from ray_l4.text.tokens import Head


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
        sharding: Sharding = ALONE,
        micro_batch: int | None = None,
    ) -> None:
        """``sharding``: the ranks that the student spans. ``micro_batch``: examples that a rank runs at a time."""
        self.peer = peer
        self.model = model
        self.tokenizer = tokenizer
        self.experiment = experiment
        self.method = method
        self.guard: Guard | None = build_guard(method.guard)
        self._sharding = sharding
        self._micro_batch = micro_batch
        self._position_logits = sharding.wrap(model)
        self.device = model.device
        distillation = experiment.distillation
        self._spec = ObjectiveSpec(
            distillation.weight, distillation.temperature, distillation.direction, distillation.average
        )
        self._next_step = 0
        self._pending: Step | None = None

    def begin_stage(self, stage: int, tokens: pa.Table, memory: pa.Table | None = None) -> None:
        """Start learning ``tokens`` (current and replayed examples) with a fresh optimiser and schedule (REFERENCE.md#adamw).

        ``memory``: stored examples of earlier tasks, for a method that guards its gradients with them.
        """
        self.stage = stage
        self.tokens = tokens
        self.memory = memory
        self._steps = Steps(
            self.experiment, self.method, self.tokenizer, stage, tokens, self._sharding, self._micro_batch
        )
        self.sampler = self._steps.sampler_of(self.peer)
        self.optimizer = build_optimizer(self.model, self.experiment.optim)
        self.optimizer.zero_grad(set_to_none=True)  # a step may have come to nothing half-way
        self.model.train()
        self._next_step = 0
        self._pending = None

    def forward(self, step: int, *, publish: bool = True) -> Predictions:
        """Predictions of this rank's share of the step's batch; only what other peers need leaves.

        In one piece it is run once and its graph is kept. In several it is run without one, and only if it is to
        ``publish`` anything; ``backward`` then runs each piece again, for itself.

        Raises PeerError if ``step`` is not the next one.
        """
        if step != self._next_step or self._pending is not None:
            raise PeerError(f"{self._where(step)}: asked for forward, but the next call is for step {self._next_step}")
        work = self._steps.step(step, self.peer, self.device)
        predictions = NOTHING
        if len(work.pieces) == 1:
            (piece,) = work.pieces
            work.outputs = self._run(step, piece)
            predictions = self._predictions(piece, work.outputs) if publish else NOTHING
        elif publish:
            predictions = self._all_predictions(work)
        self._pending = work
        return predictions

    def predict(self, step: int, student: int) -> Predictions:
        """Predictions for the batch of ``student``'s step, without dropout; nothing is learned from it."""
        was_training = self.model.training
        self.model.eval()
        predictions = self._all_predictions(self._steps.step(step, student, self.device))
        self.model.train(was_training)
        return predictions

    def backward(self, step: int, targets: Sequence[Mapping[str, Targets]]) -> dict[str, float]:
        """Learn from the labels and from ``targets``: head -> what a teacher says of the same step, of every teacher.

        Returns figures of the whole step, the same on every rank: losses per token, learning rate, gradient norm,
        samples and tokens. Raises PeerError if the step was not forwarded, or if its loss is not finite.
        """
        work = self._pending
        if work is None or work.number != step:
            raise PeerError(f"{self._where(step)}: asked for backward before forward")
        self._check_rows(work, targets)
        parts = [
            self._accumulate(piece, work.outputs or self._run(step, piece), targets, work.denominators)
            for piece in work.pieces
        ]
        of_rank = torch.stack([torch.stack([part[name] for part in parts]).sum().float() for name in parts[0]])
        figures = dict(zip(parts[0], self._sharding.add_up(self.model, of_rank).unbind(), strict=True))
        if self.guard is not None:
            figures["penalty"] = self.guard.restrain(self, step)
            figures["loss"] = figures["loss"] + figures["penalty"]
        figures["grad_norm"] = clip(self.model, self.experiment.training.max_grad_norm)
        values = dict(zip(figures, torch.stack([f.float() for f in figures.values()]).tolist(), strict=True))
        if not np.isfinite(values["loss"]) or not np.isfinite(values["grad_norm"]):
            raise PeerError(f"{self._where(step)}: loss or gradient is not finite ({values}); try a lower optim.lr")
        values["lr"] = self._update(step)
        values["samples"] = work.num_samples
        values["tokens"] = work.num_tokens
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

    def abandon(self) -> int:
        """Drop the step that was begun, if any: its peers are not what they were. Gives the next step."""
        self._pending = None
        self.model.zero_grad(set_to_none=True)  # there may be no stage yet, and so no optimiser
        return self._next_step

    def weights(self) -> np.ndarray:
        """The whole model's weights as safetensors bytes (uint8); of several ranks all are asked, the first answers."""
        return self._sharding.weights(self.model)

    def load(self, weights: np.ndarray) -> None:
        """Go on from what ``weights`` gave. Raises ModelError if it is damaged or does not fit."""
        self._sharding.load(self.model, weights)

    def _run(self, step: int, piece: Piece) -> dict[Head, Outputs]:
        """What the model says about a piece of the step, with the dropout that the piece always has."""
        if self.model.training:
            part = () if piece.first is None else (piece.first,)
            torch.manual_seed(
                derive(peer_seed(self.experiment, self.peer), "dropout", self.peer, self.stage, step, *part)
            )
        return self._outputs(piece.batch)

    def _predictions(self, piece: Piece, outputs: Mapping[Head, Outputs]) -> Predictions:
        logits: dict[str, Tensor] = {}
        hidden: dict[str, Tensor] = {}
        for head, (logits_NV, hidden_ND) in outputs.items():
            count = _length(piece.distilled[head])
            logits[head] = logits_NV.detach()[:count]
            if hidden_ND is not None:
                hidden[head] = hidden_ND.detach()[:count]
        output = self._position_logits.output_layer
        return Predictions(logits, hidden, output) if output is not None else Predictions(logits)

    @torch.no_grad()
    def _all_predictions(self, work: Step) -> Predictions:
        """Those of all pieces, one after the other; no graph is kept."""
        return joined([self._predictions(piece, self._run(work.number, piece)) for piece in work.pieces])

    def _accumulate(
        self,
        piece: Piece,
        outputs: Mapping[Head, Outputs],
        targets: Sequence[Mapping[str, Targets]],
        denominators: Mapping[Head, Denominators],
    ) -> dict[str, Tensor]:
        """Add a piece's gradients to those of the parameters, and give its part of the step's losses."""
        figures: dict[str, Tensor] = {}
        gradients: list[Tensor] = []
        total = torch.zeros((), device=self.device)
        for head, positions in piece.batch.heads.items():
            losses, gradient_NV = head_gradient(
                outputs[head].logits_NV,
                positions.targets_N,
                positions.weights_N,
                _length(piece.distilled[head]),
                [target[head] for target in targets],
                self._spec,
                denominators[head],
                piece.distilled[head].start,
            )
            weight = 1.0 if head == "qa" else self.experiment.training.lm_weight
            total = total + weight * losses.total
            gradients.append(gradient_NV.mul_(weight))
            figures |= {f"nll_{head}": losses.nll, f"kd_{head}": losses.kd}
        torch.autograd.backward([own.logits_NV for own in outputs.values()], gradients)
        return figures | {"loss": total}

    def _check_rows(self, work: Step, targets: Sequence[Mapping[str, Targets]]) -> None:
        for head, distilled in work.pieces[-1].distilled.items():
            for teacher in targets:
                if teacher[head].num_positions != distilled.stop:
                    raise PeerError(
                        f"{self._where(work.number)}: a teacher speaks of {teacher[head].num_positions} positions of "
                        f"{head}; expected {distilled.stop}. Are both at the same batch?"
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


def _length(rows: slice) -> int:
    return int(rows.stop - rows.start)
