"""The calls that students and evaluators serve, as interfaces without the libraries that serving them takes.

Callers import only this module, and with it neither PyTorch nor Transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from ray_l4.exchange.links import Ticket
    from ray_l4.text.test_sets import Scored
    from ray_l4.workers.log import LogLine
    from ray_l4.workers.rendezvous import Rendezvous

F = TypeVar("F", bound=Callable[..., Any])


def returning(count: int) -> Callable[[F], F]:
    """Mark a call that returns ``count`` values, each of which gets a reference of its own."""

    def mark(call: F) -> F:
        call.num_results = count  # type: ignore[attr-defined]
        return call

    return mark


class WeightsDigest(NamedTuple):
    """What tells whether two students will stay equal."""

    weights: str
    """A digest of the rank's weights: equal for equal ones."""
    dropout: bool
    """Whether dropout acts on them in training, and thus makes students differ."""


class FailedStep(NamedTuple):
    """What it takes, beside the weights, to repeat a step whose loss or gradient is not finite."""

    figures: dict[str, float]
    rate: float
    """The learning rate that the update would have had."""
    batch: pa.Table
    """The examples of the step, in their order."""
    memory: pa.Table | None
    """Stored examples of earlier tasks, for a guard that needs them."""
    guard: np.ndarray | None
    """The state of the guard, if it has one."""
    targets: np.ndarray
    """The payloads that the teachers sent, as safetensors bytes (``workers.failed_step``)."""


class StudentCalls(Protocol):
    """The calls that a rank of a student serves; ``workers.student.Student`` documents them."""

    def ready(self) -> None: ...

    def meet(self, rendezvous: Rendezvous, ranks: Mapping[int, int]) -> None: ...

    def reset(self) -> None: ...

    def describe(self) -> dict[str, Any]: ...

    def digest(self) -> WeightsDigest: ...

    def load(self, weights: np.ndarray) -> None: ...

    def rejoin(self, fence: int) -> int: ...

    def begin(self, fence: int, stage: int, tokens: pa.Table, memory: pa.Table | None = None) -> list[int]: ...

    def state(self, fence: int) -> np.ndarray: ...

    def resume(self, fence: int, state: np.ndarray) -> None: ...

    def forward(self, fence: int, step: int, readers: Sequence[int]) -> Ticket: ...

    def predict(
        self, fence: int, step: int, student: int, readers: Sequence[int], at_once: bool, asked: Ticket | None = None
    ) -> Ticket: ...

    def backward(self, fence: int, step: int, own: Ticket, *teachers: Ticket) -> dict[str, float]: ...

    @returning(2)
    def advance(
        self, fence: int, step: int, readers: Sequence[int], own: Ticket, *teachers: Ticket
    ) -> tuple[dict[str, float], Ticket]: ...

    def validate(self, fence: int, items: Sequence[str]) -> float: ...

    def consolidate(self) -> np.ndarray | None: ...

    def restore_guard(self, data: np.ndarray) -> None: ...

    def weights(self) -> np.ndarray: ...

    def peak_memory(self) -> int: ...

    def failed_step(self) -> FailedStep | None: ...

    def take_log(self) -> list[LogLine]: ...


class EvaluatorCalls(Protocol):
    """The calls that an evaluator serves; ``workers.evaluator.Evaluator`` documents them."""

    def ready(self) -> None: ...

    def answer(
        self,
        checkpoint: str,
        description: Mapping[str, Any],
        weights: np.ndarray,
        student: int,
        stage: int,
        task: str,
        batches: Sequence[Sequence[int]],
    ) -> dict[int, str]: ...

    def answer_together(
        self,
        checkpoint: str,
        checkpoints: Sequence[str],
        students: Sequence[int],
        stage: int,
        task: str,
        batches: Sequence[Sequence[int]],
        *models: Any,
    ) -> dict[int, str]: ...

    def score(self, task: str, predictions: Sequence[str]) -> Scored: ...

    def general(
        self, checkpoint: str, description: Mapping[str, Any], weights: np.ndarray, student: int, windows: range
    ) -> list[float]: ...

    def general_at_start(self, checkpoint: str, student: int, windows: range) -> list[float]: ...

    def replay(
        self,
        checkpoint: str,
        description: Mapping[str, Any],
        weights: np.ndarray,
        student: int,
        gens: list[int],
        seeds: list[int],
        max_length: int,
    ) -> list[np.ndarray]: ...

    def answer_training(
        self, checkpoint: str, description: Mapping[str, Any], weights: np.ndarray, item: str, rows: range
    ) -> list[str]: ...

    def forget(self) -> None: ...

    def peak_memory(self) -> int: ...
