"""One peer's learning of one stage: its optimiser, its position in the stage, and the step under way."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.profiler import record_function

from ray_l4.errors import PeerError
from ray_l4.learner.batch_rows import positions_of
from ray_l4.learner.dropout import seed_generators
from ray_l4.learner.guard_context import GuardContext
from ray_l4.learner.head_outputs import HeadOutputs, HiddenRows, continue_backward
from ray_l4.learner.micro_batches import MicroBatch, concatenate
from ray_l4.learner.non_finite import non_finite_error, skips
from ray_l4.learner.optim import build_optimizer
from ray_l4.learner.own_answers import own_answers
from ray_l4.learner.peer_model import PeerModel
from ray_l4.learner.predictions import NOTHING, ComputedLogits, Predictions
from ray_l4.learner.schedule import learning_rate
from ray_l4.learner.sharding import clip
from ray_l4.learner.steps import Step, Steps
from ray_l4.losses.head_gradient import head_gradient
from ray_l4.losses.objective import Denominators, ObjectiveSpec
from ray_l4.methods import peer_seed
from ray_l4.seeds import derive
from ray_l4.text.batches import build_batch
from ray_l4.text.demonstration import demonstrated

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor

    from ray_l4.losses.targets import Targets
    from ray_l4.text.heads import Head

log = logging.getLogger("ray_l4.learner")


class StageRun:
    """Owns the optimiser, the sampler, the number of the next step and the step under way.

    Call ``forward(step)`` and ``backward(step, targets)`` in turn for steps 0, 1, 2, ... The batch and dropout of a
    step follow from (seed, peer, stage, step) alone, so a step can be repeated on any machine.
    """

    def __init__(self, learner: PeerModel, stage: int, tokens: pa.Table, memory: pa.Table | None = None) -> None:
        self.learner = learner
        self.stage = stage
        self.tokens = tokens
        self.memory = memory
        self._experiment = learner.experiment.at_stage(stage)
        distillation = self._experiment.distillation
        self._spec = ObjectiveSpec(
            distillation.weight, distillation.temperature, distillation.direction, distillation.average
        )
        self._steps = Steps(learner, stage, tokens)
        self.sampler = self._steps.sampler_of(learner.peer)
        self.optimizer = build_optimizer(learner.model, self._experiment.optim)
        self._trained = [parameter for parameter in learner.model.parameters() if parameter.requires_grad]
        self.optimizer.zero_grad(set_to_none=True)  # a step of an earlier stage may have been interrupted
        learner.model.train()
        self._next_step = 0
        self.num_skipped = 0
        self.answer: Callable[[int], pa.Table | None] = partial(own_answers, learner, self._steps, stage)
        """Step -> its current examples with the student's own answers; None if the given ones bear the distillation."""
        self.answered: pa.Table | None = None
        """The current examples of the step under way with the student's own answers, if these bear the distillation."""
        self.failed: dict[str, float] | None = None
        """Figures of the step that failed, because its loss or gradient is not finite; it stays under way."""
        self._under_way: Step | None = None
        log.info("student %d, stage %d: %d examples, %d steps", learner.peer, stage, tokens.num_rows, self.num_steps)

    @property
    def next_step(self) -> int:
        """The number of the next step, or of the step under way."""
        return self._next_step

    @property
    def num_steps(self) -> int:
        """The number of steps of the stage."""
        return self.sampler.num_steps

    def forward(self, step: int, *, publish: bool = True) -> Predictions:
        """Run this rank's share of the step's batch; returns its predictions if ``publish``, else empty ones.

        A single micro-batch is run once, and its graph is kept. Several micro-batches are run here only to
        ``publish``, without a graph; ``backward`` runs each of them again.

        Raises PeerError if ``step`` is not the next one, or if a step is under way.
        """
        if step != self._next_step or self._under_way is not None:
            expected = "forward" if self._under_way is None else "backward"
            raise PeerError(
                f"{self._where(step)}: forward was called out of order; expected {expected} of step {self._next_step}"
            )
        with record_function("ray_l4.answers"):
            self.answered = self.answer(step)
        with record_function("ray_l4.batch"):
            work = self._steps.step(step, self.learner.peer, self.answered)
        predictions = NOTHING
        if len(work.micro_batches) == 1:
            (micro_batch,) = work.micro_batches
            work.outputs = self._run(step, micro_batch)
            predictions = self._predictions(micro_batch, work.outputs) if publish else NOTHING
            work.published = predictions
        elif publish:
            predictions = self._all_predictions(work)
        if isinstance(predictions.logits, ComputedLogits):
            work.lent = weakref.ref(predictions.logits)
        self._under_way = work
        return predictions

    def predict(self, step: int, student: int, answered: pa.Table | None = None) -> Predictions:
        """Predict the batch of ``student``'s step, without dropout and without learning from it.

        ``answered``: the student's own answers to the current examples, if it learns there; only these are predicted.
        A teacher that sees demonstrations sees the given answers (REFERENCE.md#sdft).
        """
        model = self.learner.model
        if answered is not None and self.learner.method.demonstrates:
            examples = self._steps.current_examples(step, student)
            answered = demonstrated(answered, examples, self.learner.tokenizer, positions_of(model))
        was_training = model.training
        model.eval()
        predictions = self._all_predictions(self._steps.asked(step, student, answered))
        model.train(was_training)
        return predictions

    def backward(self, step: int, targets: Sequence[Mapping[str, Targets]]) -> dict[str, float]:
        """Learn from the labels and from ``targets``: for each teacher, head -> its predictions for the same batch.

        Returns the figures of the whole step, equal on all ranks: losses per token (nats), learning rate, gradient
        norm, numbers of examples and tokens, whether the update was skipped. Raises PeerError if ``forward`` was not
        called for this step, NonFiniteError if the loss or the gradient norm is not finite and the step may not be
        skipped.
        """
        work = self._under_way
        if work is None or work.number != step:
            raise PeerError(f"{self._where(step)}: backward was called before forward")
        self._check_rows(work, targets)
        self._take_over_logits(work)
        figures = self._accumulate_all(work, targets)
        values = dict(zip(figures, torch.stack([f.float() for f in figures.values()]).tolist(), strict=True))
        skipped = not np.isfinite(values["loss"]) or not np.isfinite(values["grad_norm"])
        if skipped and not skips(self.learner.experiment.training, self.num_skipped):
            self.failed = values
            raise non_finite_error(self.learner, self.stage, step, values)
        self.num_skipped += skipped
        values["lr"] = self.rate(step)
        if (lent := work.lent()) is not None:
            lent.expire()
        if not skipped:
            self._update(values["lr"])
        self.optimizer.zero_grad(set_to_none=True)
        values["skipped"] = float(skipped)
        values["samples"] = work.num_examples
        values["tokens"] = work.num_tokens
        self._under_way = self.answered = None
        self._next_step = step + 1
        log.debug("%s: loss %.6f, gradient norm %.6f", self._where(step), values["loss"], values["grad_norm"])
        return values

    def abandon(self) -> int:
        """Drop the step under way, if any, with its gradients; returns the number of the next step."""
        self._under_way = self.answered = None
        self.optimizer.zero_grad(set_to_none=True)
        return self._next_step

    def consolidate(self) -> None:
        """Tell the guard, if there is one, that the stage has been learned."""
        if self.learner.guard is not None:
            self.learner.guard.after_stage(self._guard_context())

    def state_dict(self) -> dict[str, Any]:
        """Return the state needed, besides the weights, to continue from here: position and optimiser state.

        The tensors are the optimiser's own, not copies. A step that ``forward`` has begun is not part of it, as that
        changed neither weights nor optimiser; it is repeated.
        """
        return {
            "stage": self.stage,
            "next_step": self._next_step,
            "num_skipped": self.num_skipped,
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state that ``state_dict`` returned; load the weights saved with it as well.

        The step under way, if any, is dropped. Raises PeerError if the state belongs to another stage or to a step
        that this stage does not have.
        """
        if state["stage"] != self.stage or not 0 <= state["next_step"] <= self.num_steps:
            raise PeerError(
                f"student {self.learner.peer}, stage {self.stage}: the saved state is of stage {state['stage']}, step "
                f"{state['next_step']}; expected stage {self.stage} and a step from 0 to {self.num_steps}"
            )
        self.abandon()
        self.optimizer.load_state_dict(state["optimizer"])
        self._next_step = state["next_step"]
        self.num_skipped = state["num_skipped"]

    def _accumulate_all(self, work: Step, targets: Sequence[Mapping[str, Targets]]) -> dict[str, Tensor]:
        """Compute the step's gradients, apply the guard and clip; returns the step's figures as scalar tensors."""
        learner = self.learner
        parts = [
            self._accumulate(part, work.outputs or self._run(work.number, part), targets, work.denominators)
            for part in work.micro_batches
        ]
        of_rank = torch.stack([torch.stack([part[name] for part in parts]).sum().float() for name in parts[0]])
        figures = dict(zip(parts[0], learner.sharding.add_up(learner.model, of_rank).unbind(), strict=True))
        if learner.guard is not None:
            figures["penalty"] = learner.guard.restrain(self._guard_context(), work.number)
            figures["loss"] = figures["loss"] + figures["penalty"]
        with record_function("ray_l4.clip"):
            figures["grad_norm"] = clip(self._trained, learner.experiment.training.max_grad_norm)
        return figures

    def _guard_context(self) -> GuardContext:
        learner = self.learner
        return GuardContext(
            peer=learner.peer,
            stage=self.stage,
            model=learner.model,
            experiment=learner.experiment,
            tokens=self.tokens,
            memory=self.memory,
            answer_logits=self._answer_logits,
            num_examples=lambda step: len(self.sampler.indices(step)),
        )

    def _answer_logits(self, table: pa.Table, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        learner = self.learner
        weight = learner.experiment.training.answer_token_weight
        batch = build_batch(table, rows, ("qa",), learner.tokenizer, weight).to(learner.device)
        return learner.logits(batch)["qa"], batch.heads["qa"].targets_N

    def _run(self, step: int, micro_batch: MicroBatch) -> dict[Head, HeadOutputs]:
        """Run a micro-batch; its dropout is the same whenever it is run in this step."""
        learner = self.learner
        if learner.model.training:
            names = () if micro_batch.first is None else (micro_batch.first,)
            seed = peer_seed(learner.experiment, learner.peer)
            seed_generators(derive(seed, "dropout", learner.peer, self.stage, step, *names), learner.device)
        with record_function("ray_l4.forward"):
            return learner.outputs(micro_batch.batch)

    def _predictions(self, micro_batch: MicroBatch, outputs: Mapping[Head, HeadOutputs]) -> Predictions:
        logits: dict[str, Tensor] = {}
        hidden: dict[str, Tensor] = {}
        layer = None
        for head, own in outputs.items():
            count = micro_batch.num_distilled(head)
            if isinstance(own, HiddenRows):
                hidden[head], layer = own.hidden_ND.detach()[:count], own.layer
            else:
                logits[head] = own.logits(slice(count))
        return Predictions(logits) if layer is None else Predictions(ComputedLogits(hidden, layer), hidden, layer)

    @torch.no_grad()
    def _all_predictions(self, work: Step) -> Predictions:
        """Run all micro-batches one by one, without a graph; returns their predictions."""
        parts = [self._predictions(part, self._run(work.number, part)) for part in work.micro_batches]
        return concatenate(parts)

    def _accumulate(
        self,
        micro_batch: MicroBatch,
        outputs: Mapping[Head, HeadOutputs],
        targets: Sequence[Mapping[str, Targets]],
        denominators: Mapping[Head, Denominators],
    ) -> dict[str, Tensor]:
        """Add a micro-batch's gradients to the parameters' gradients; returns its contribution to the step's losses."""
        zero = torch.zeros((), device=self.learner.device)
        figures = {f"{loss}_{head}": zero for head in self.learner.method.heads for loss in ("nll", "kd")}
        total = zero
        for head, positions in micro_batch.batch.heads.items():
            with record_function("ray_l4.loss"):
                losses = head_gradient(
                    outputs[head],
                    positions.targets_N,
                    positions.weights_N,
                    micro_batch.num_distilled(head),
                    [target[head] for target in targets if head in target],
                    self._spec,
                    denominators[head],
                    micro_batch.distilled[head].start,
                )
            total = total + outputs[head].weight * losses.total
            name = "qa" if head == "own" else head  # of the answers, either the given or the own ones are distilled
            figures[f"nll_{name}"] = figures[f"nll_{name}"] + losses.nll
            figures[f"kd_{name}"] = figures[f"kd_{name}"] + losses.kd
        with record_function("ray_l4.backward"):
            continue_backward(list(outputs.values()))
        return figures | {"loss": total}

    def _take_over_logits(self, work: Step) -> None:
        """Use the logits again that a codec had computed, instead of computing them twice."""
        published = work.published.logits
        known = published.computed if isinstance(published, ComputedLogits) else {}
        for head, own in (work.outputs or {}).items():
            if isinstance(own, HiddenRows):
                own.known_KV = known.get(head)

    def _check_rows(self, work: Step, targets: Sequence[Mapping[str, Targets]]) -> None:
        for head, distilled in work.micro_batches[-1].distilled.items():
            for teacher in targets:
                found = teacher[head].num_positions if head in teacher else 0
                if found != distilled.stop:
                    raise PeerError(
                        f"{self._where(work.number)}: a teacher predicted {found} positions of head {head}; expected "
                        f"{distilled.stop}. Do teacher and student have the same batch?"
                    )

    def rate(self, step: int) -> float:
        """Return the learning rate of a step."""
        experiment, sampler = self._experiment, self.sampler
        before, epochs = sampler.examples_before(step), experiment.training.epochs
        return learning_rate(before, sampler.num_examples, epochs, experiment.optim)

    def _update(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with record_function("ray_l4.update"):
            self.optimizer.step()

    def _where(self, step: int) -> str:
        return f"student {self.learner.peer}, stage {self.stage}, step {step}"
