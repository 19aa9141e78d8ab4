"""Repeats one step in this process, and records where the first number that is not finite appears."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from torch import Tensor, nn

from ray_l4.errors import NonFiniteError
from ray_l4.learner.stage_run import StageRun
from ray_l4.learner.steps import Steps
from ray_l4.losses.nll import at_least_float32
from ray_l4.text.sampler import Sampler

if TYPE_CHECKING:
    from ray_l4.learner.learner import Learner
    from ray_l4.losses.targets import Targets


@dataclass
class Finding:
    """What repeating a step showed."""

    figures: dict[str, float] = field(default_factory=dict)
    losses: list[tuple[int, str, float, int | None]] = field(default_factory=list)
    """Example, head, mean loss on its labels (nats), and its first position whose logits are not finite, if any."""
    first_output: str | None = None
    """The first module whose output is not finite."""
    first_gradient: str | None = None
    """The first parameter whose gradient is not finite."""
    outputs: dict[str, float] = field(default_factory=dict)
    """Module -> largest magnitude of its output, in the order of the forward pass."""
    weights: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Parameter -> its smallest and largest value."""


class _Batch(Sampler):
    """Has a single batch: all examples, in their order."""

    def __init__(self, count: int) -> None:
        self.num_examples = count

    @property
    def num_steps(self) -> int:
        return 1

    def indices(self, step: int) -> np.ndarray:
        return np.arange(self.num_examples)

    def examples_before(self, step: int) -> int:
        return 0


class _OneStep(Steps):
    def __init__(self, learner: Learner, stage: int, tokens: pa.Table) -> None:
        super().__init__(learner, stage, tokens)
        self._batch = _Batch(tokens.num_rows)

    def sampler_of(self, student: int) -> Sampler:
        return self._batch


class RepeatedStep(StageRun):
    """A stage run of which one step is learned, whose batch is all of the table.

    Rows with answers that the student gave itself are those of ``distillation.on_policy``.
    """

    def __init__(self, learner: Learner, stage: int, step: int, batch: pa.Table, memory: pa.Table | None) -> None:
        is_answered = pc.equal(batch["origin"], "answered")
        answered = batch.filter(is_answered).combine_chunks()
        batch = batch.filter(pc.invert(is_answered)).combine_chunks()
        super().__init__(learner, stage, batch, memory)
        self._steps = _OneStep(learner, stage, batch)
        self.sampler = self._steps.sampler_of(learner.peer)
        self._next_step = step
        self.answer = lambda _: answered if answered.num_rows else None
        self.finding = Finding()

    def repeat(self, targets: Sequence[Mapping[str, Targets]]) -> Finding:
        """Run forward and backward pass; returns what was found. The weights are not to be used afterwards."""
        found, model = self.finding, self.learner.model
        found.weights = {name: _range(weight) for name, weight in model.named_parameters()}
        hooks = [*_watch_outputs(model, found), *_watch_gradients(model, found)]
        try:
            self.forward(self.next_step, publish=False)
            found.figures = self.backward(self.next_step, targets)
        except NonFiniteError:
            found.figures = self.failed or {}
        finally:
            for hook in hooks:
                hook.remove()
        return found

    def _accumulate(self, micro_batch: Any, outputs: Any, *rest: Any) -> dict[str, Tensor]:
        width = micro_batch.batch.input_ids_RT.shape[1]
        for head, positions in micro_batch.batch.heads.items():
            logits_NV = at_least_float32(outputs[head].logits(slice(0, len(positions.targets_N))))
            loss_N = nn.functional.cross_entropy(logits_NV, positions.targets_N, reduction="none")
            wrong_N = ~logits_NV.isfinite().all(dim=-1)
            row_N = positions.positions_N // width % micro_batch.batch.num_examples
            for example in row_N.unique().tolist():
                own_N = row_N == example
                at = (positions.positions_N % width)[own_N & wrong_N]
                first = int(at.min()) if len(at) else None
                place = (micro_batch.first or 0) + example
                self.finding.losses.append((place, head, float(loss_N[own_N].mean()), first))
        return super()._accumulate(micro_batch, outputs, *rest)


def _range(weight: Tensor) -> tuple[float, float]:
    return float(weight.detach().min()), float(weight.detach().max())


def _watch_outputs(model: nn.Module, found: Finding) -> Iterator[Any]:
    def watch(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            tensor = output[0] if isinstance(output, tuple) else output
            if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
                return
            found.outputs[name] = float(tensor.detach().abs().max())
            if found.first_output is None and not bool(tensor.detach().isfinite().all()):
                found.first_output = name

        return hook

    return (part.register_forward_hook(watch(name)) for name, part in model.named_modules() if not _children(part))


def _children(module: nn.Module) -> bool:
    return next(module.children(), None) is not None


def _watch_gradients(model: nn.Module, found: Finding) -> Iterator[Any]:
    def watch(name: str) -> Any:
        def hook(parameter: Tensor) -> None:
            bad = parameter.grad is not None and not bool(parameter.grad.isfinite().all())
            if bad and found.first_gradient is None:
                found.first_gradient = name

        return hook

    named = ((name, weight) for name, weight in model.named_parameters() if weight.requires_grad)
    return (weight.register_post_accumulate_grad_hook(watch(name)) for name, weight in named)
