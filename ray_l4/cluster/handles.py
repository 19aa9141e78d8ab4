"""Typed calls to students and evaluators, the same with and without Ray."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from ray_l4.cluster.rpc import PerRank, Ref, Rpc, get_first
from ray_l4.workers.calls import EvaluatorCalls, FailedStep, StudentCalls, WeightsDigest

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    import pyarrow as pa

    from ray_l4.exchange.links import Ticket
    from ray_l4.text.test_sets import Scored
    from ray_l4.workers.log import LogLine
    from ray_l4.workers.rendezvous import Rendezvous

T = TypeVar("T")


@dataclass(frozen=True)
class ModelRef:
    """References to the configuration and weights of a model that an evaluator is to load."""

    name: str
    """Unique to a set of weights: an evaluator that holds a model of this name does not load it again."""
    description: Ref[Mapping[str, Any]]
    """The model's configuration."""
    weights: Ref[np.ndarray]
    """Safetensors bytes."""


@dataclass(frozen=True)
class StudentHandle:
    """A student, which may span several ranks. Every call goes to all ranks and returns a reference for each.

    ``fence``: the number of the membership that a call belongs to. A student refuses calls with any other number.
    """

    slot: int
    """Index of the student among the student workers of the run."""
    rpc: Rpc
    ranks: Sequence[Any]

    def ready(self) -> PerRank[None]:
        """Succeed once the student is ready; fail with the error that kept it from starting."""
        return self._all(StudentCalls.ready)

    def meet(self, members: Sequence[Rendezvous], ranks: Mapping[int, int]) -> PerRank[None]:
        """Have every rank join its process group of peers. ``ranks``: peer -> its rank in these groups."""
        return [
            self.rpc.call(worker, StudentCalls.meet, member, ranks)
            for worker, member in zip(self.ranks, members, strict=True)
        ]

    def reset(self) -> PerRank[None]:
        """Build the model again, with its initial weights."""
        return self._all(StudentCalls.reset)

    def describe(self) -> PerRank[dict[str, Any]]:
        """Return the model's configuration."""
        return self._all(StudentCalls.describe)

    def digest(self) -> PerRank[WeightsDigest]:
        """Return a digest of each rank's weights, and whether dropout acts on them."""
        return self._all(StudentCalls.digest)

    def load(self, weights: np.ndarray | Ref[np.ndarray]) -> PerRank[None]:
        """Load the weights of a checkpoint (safetensors bytes)."""
        return self._all(StudentCalls.load, weights)

    def rejoin(self, fence: int) -> PerRank[int]:
        """Drop the step under way and serve ``fence`` from now on. Returns the next step."""
        return self._all(StudentCalls.rejoin, fence)

    def begin(
        self, fence: int, stage: int, tokens: Ref[pa.Table], memory: Ref[pa.Table] | None = None
    ) -> PerRank[list[int]]:
        """Begin a stage and serve ``fence`` from now on. Returns the last step of each epoch."""
        return self._all(StudentCalls.begin, fence, stage, tokens, memory)

    def state(self, fence: int) -> PerRank[np.ndarray]:
        """Return each rank's state of the stage after its latest step (safetensors bytes)."""
        return self._all(StudentCalls.state, fence)

    def resume(self, fence: int, states: Sequence[np.ndarray]) -> PerRank[None]:
        """Continue the stage that has begun from the ``states`` of all ranks."""
        return [
            self.rpc.call(rank, StudentCalls.resume, fence, state)
            for rank, state in zip(self.ranks, states, strict=True)
        ]

    def forward(self, fence: int, step: int, readers: Sequence[int]) -> PerRank[Ticket]:
        """Begin a step and publish its predictions to ``readers``, the peers that learn from this one in that step."""
        return self._all(StudentCalls.forward, fence, step, readers)

    def predict(
        self,
        fence: int,
        step: int,
        student: int,
        readers: Sequence[int],
        at_once: bool = True,
        asked: PerRank[Ticket] | None = None,
    ) -> PerRank[Ticket]:
        """Predict the batch of a student's step for ``readers``, without learning from it.

        ``at_once``: whether this student does not learn in the same step. ``asked``: the tickets that ``forward`` of
        ``student`` returned, if it may have answered itself.
        """
        own = [None] * len(self.ranks) if asked is None else asked
        return [
            self.rpc.call(rank, StudentCalls.predict, fence, step, student, readers, at_once, ticket)
            for rank, ticket in zip(self.ranks, own, strict=True)
        ]

    def backward(
        self, fence: int, step: int, own: PerRank[Ticket], teachers: Sequence[PerRank[Ticket]]
    ) -> PerRank[dict[str, float]]:
        """Learn a step from labels and teachers. Returns the figures of the step.

        ``own``: the tickets that this student's ``forward`` of the step returned; if it failed, this call fails with
        the same cause. ``teachers``: the tickets from each teacher's ``forward`` or ``predict``. Each rank gets the
        tickets of the ranks with the same number.
        """
        tickets = zip(own, *teachers, strict=True)
        return [
            self.rpc.call(rank, StudentCalls.backward, fence, step, *given)
            for rank, given in zip(self.ranks, tickets, strict=True)
        ]

    def advance(
        self,
        fence: int,
        step: int,
        readers: Sequence[int],
        own: PerRank[Ticket],
        teachers: Sequence[PerRank[Ticket]],
    ) -> tuple[PerRank[dict[str, float]], PerRank[Ticket]]:
        """Do ``backward`` of a step and ``forward`` of the next one, for these ``readers``, in a single call."""
        tickets = zip(own, *teachers, strict=True)
        pairs = [
            self.rpc.call_for_two(rank, StudentCalls.advance, fence, step, readers, *given)
            for rank, given in zip(self.ranks, tickets, strict=True)
        ]
        return [figures for figures, _ in pairs], [ticket for _, ticket in pairs]

    def weights(self) -> PerRank[np.ndarray]:
        """Return the model's weights as safetensors bytes. Only the first rank's result contains them."""
        return self._all(StudentCalls.weights)

    def await_weights(self, timeout: float) -> Ref[np.ndarray]:
        """Return a reference to the first rank's weights, once the other ranks have done their part or failed."""
        first, *others = self.weights()
        if others:
            self.wait(others, timeout, "weights")
        return first

    def validate(self, fence: int, items: Sequence[str]) -> PerRank[float]:
        """Return the model's loss on the validation examples of ``items``, in nats per token of their answers."""
        return self._all(StudentCalls.validate, fence, items)

    def consolidate(self) -> PerRank[np.ndarray | None]:
        """Update the guard with the stage that was learned. Returns the guard's state, or None if it has none."""
        return self._all(StudentCalls.consolidate)

    def restore_guard(self, data: np.ndarray) -> PerRank[None]:
        """Load a guard's state, as ``consolidate`` returned it."""
        return self._all(StudentCalls.restore_guard, data)

    def peak_memory(self) -> PerRank[int]:
        """Return the peak memory of each rank so far, in bytes."""
        return self._all(StudentCalls.peak_memory)

    def failed_step(self) -> PerRank[FailedStep | None]:
        """Return what it takes to repeat the step that is not finite; None if there is none."""
        return self._all(StudentCalls.failed_step)

    def take_log(self) -> PerRank[list[LogLine]]:
        """Return the lines that each rank has logged since the last call."""
        return self._all(StudentCalls.take_log)

    def silence(self) -> str | None:
        """Return how one of its ranks came to a stop although its process exists; None if all are alive."""
        return next((silence for rank in self.ranks if (silence := self.rpc.silence(rank)) is not None), None)

    def wait(self, references: PerRank[T], timeout: float, what: str) -> T:
        """Wait for all ranks and return the value of the first. ``what`` names the call in messages."""
        return get_first(self.rpc, references, timeout, f"student {self.slot}, {what}")

    def end(self) -> None:
        """End the student's workers."""
        for rank in self.ranks:
            self.rpc.end(rank)

    def _all(self, method: Callable[..., T], *arguments: Any) -> PerRank[T]:
        return [self.rpc.call(rank, method, *arguments) for rank in self.ranks]


@dataclass(frozen=True)
class EvaluatorHandle:
    """An evaluator, which can load any checkpoint of the run."""

    rpc: Rpc
    worker: Any

    def silence(self) -> str | None:
        """Return how it came to a stop although its process exists; None if it is alive as far as known."""
        return self.rpc.silence(self.worker)

    def ready(self) -> Ref[None]:
        """Succeed once the evaluator is ready; fail with the error that kept it from starting."""
        return self.rpc.call(self.worker, EvaluatorCalls.ready)

    def answer(
        self, model: ModelRef, student: int, stage: int, task: str, batches: Sequence[Sequence[int]]
    ) -> Ref[dict[int, str]]:
        """Answer batches of a task's test set with a student's model, after a stage. Returns the answers by index."""
        return self._with_model(EvaluatorCalls.answer, model, student, stage, task, batches)

    def answer_together(
        self, name: str, models: Mapping[int, ModelRef], stage: int, task: str, batches: Sequence[Sequence[int]]
    ) -> Ref[dict[int, str]]:
        """Answer batches of a task's test set from the mean of the probabilities of several students' models.

        ``name``: that from which the seed of sampled answers follows. ``models``: student -> its model.
        """
        names = [model.name for model in models.values()]
        # References inside another argument would not be replaced by their values.
        given = [reference for model in models.values() for reference in (model.description, model.weights)]
        asked = (name, names, list(models), stage, task, batches)
        return self.rpc.call(self.worker, EvaluatorCalls.answer_together, *asked, *given)

    def score(self, task: str, predictions: Sequence[str]) -> Ref[Scored]:
        """Score the answers to the whole test set of a task."""
        return self.rpc.call(self.worker, EvaluatorCalls.score, task, predictions)

    def general(self, model: ModelRef, student: int, windows: range) -> Ref[list[float]]:
        """Return the losses of a student's model on these windows of the general text, in nats."""
        return self._with_model(EvaluatorCalls.general, model, student, windows)

    def general_at_start(self, name: str, student: int, windows: range) -> Ref[list[float]]:
        """Do what ``general`` does for the model that a student begins the run with, which has this ``name``."""
        return self.rpc.call(self.worker, EvaluatorCalls.general_at_start, name, student, windows)

    def replay(
        self, model: ModelRef, student: int, gens: list[int], seeds: list[int], max_length: int
    ) -> Ref[list[np.ndarray]]:
        """Generate a pseudo-example for each task token in ``gens`` with a student's model. Returns their token ids."""
        return self._with_model(EvaluatorCalls.replay, model, student, gens, seeds, max_length)

    def answer_training(self, model: ModelRef, item: str, rows: range) -> Ref[list[str]]:
        """Answer training examples of a task (``rows``) with its teacher's model."""
        return self._with_model(EvaluatorCalls.answer_training, model, item, rows)

    def forget(self) -> Ref[None]:
        """Load the next checkpoint even if it has the same name as the current one."""
        return self.rpc.call(self.worker, EvaluatorCalls.forget)

    def peak_memory(self) -> Ref[int]:
        """Return its peak memory so far, in bytes."""
        return self.rpc.call(self.worker, EvaluatorCalls.peak_memory)

    def end(self) -> None:
        """End the evaluator's worker."""
        self.rpc.end(self.worker)

    def _with_model(self, method: Callable[..., T], model: ModelRef, *arguments: Any) -> Ref[T]:
        return self.rpc.call(self.worker, method, model.name, model.description, model.weights, *arguments)
