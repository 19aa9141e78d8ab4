"""The result of a run: typed access to ``summary.json``, whichever version wrote it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray_l4.methods import METHODS, get_method, graph_in_words
from ray_l4.metrics.continual import ScoreMatrix
from ray_l4.store.run_directory import TOGETHER

NO_ORDER = "in no order"
"""Stands for the order of a method that learns each task alone, or all tasks at once."""


def order_title(stream: Iterable[str]) -> str:
    """Return an order of tasks as people read it: ``first -> second``."""
    return " -> ".join(stream)


@dataclass(frozen=True)
class RunResult:
    """The result of one run. Scores are percentages; None stands for one that is undefined or was not computed.

    A key that the writing version did not know yet has the value that held for all runs of that version.
    """

    summary: Mapping[str, Any]
    """The contents of ``summary.json``, as :func:`ray_l4.report.summary.summarise` computes them."""

    @property
    def name(self) -> str:
        """The experiment's name."""
        return str(self.summary["name"])

    @property
    def method(self) -> str:
        """Name of the method."""
        return str(self.summary["method"])

    @property
    def variant(self) -> str:
        """Name of the table row that the run belongs to: its variant, or its method if it has none."""
        return self.summary.get("variant") or self.method

    @property
    def seed(self) -> int:
        """The run's seed."""
        return int(self.summary["seed"])

    @property
    def label(self) -> str:
        """Variant and seed, for people."""
        return f"{self.variant}, seed {self.seed}"

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks of the stream, each once, in the order in which they first come; the columns of a score matrix."""
        return tuple(self.summary["stream"])

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of the stages, the rows of a score matrix. Early runs had one stage for each task."""
        return tuple(self.summary.get("stages") or self.tasks)

    @property
    def learned(self) -> tuple[tuple[str, ...], ...]:
        """The tasks that each stage learned. In early runs no task came back."""
        found = self.summary.get("learned")
        if found is not None:
            return tuple(map(tuple, found))
        return tuple((task,) for task in self.tasks) if len(self.stages) == len(self.tasks) else (self.tasks,)

    @property
    def learned_columns(self) -> list[int] | None:
        """The column of the task that each stage learned; None if a stage learned several at once."""
        columns = [[self.tasks.index(task) for task in tasks] for tasks in self.learned]
        return [column for (column,) in columns] if all(len(own) == 1 for own in columns) else None

    @property
    def stream(self) -> tuple[str, ...]:
        """The stream as people read it: the stages, or the tasks if one stage learned several at once."""
        return self.tasks if self.learned_columns is None else self.stages

    @property
    def students(self) -> range:
        """Numbers of the students, lost ones included."""
        return range(int(self.summary["peers"]))

    @property
    def rows(self) -> tuple[int, ...]:
        """The numbers of the students, and ``TOGETHER`` if they were scored together too."""
        return (*self.students, *([TOGETHER] if self.summary.get("together") else []))

    @property
    def learns_in_order(self) -> bool:
        """Whether the method learns one task after another, so that their order matters."""
        return get_method(self.method).kind.ordered

    @property
    def order(self) -> str:
        """The order of the stages as a title, or ``NO_ORDER``. Runs of one order can be compared."""
        return order_title(self.stages) if self.learns_in_order else NO_ORDER

    @property
    def graph(self) -> str:
        """Who learns from whom, in words. Early runs did not record it: they have their method's graph."""
        method = METHODS.get(self.method)
        return graph_in_words(
            self.summary.get("topology", method.topology if method else "unknown"), len(self.students)
        )

    @property
    def learns_from_others(self) -> bool:
        """Whether the students have peers or teachers to learn from."""
        edges = self.summary.get("topology")
        if isinstance(edges, list):
            return bool(edges)
        method = METHODS.get(self.method)
        return method is None or bool(method.graph(len(self.students)).edges)

    def matrix(self, student: int) -> ScoreMatrix:
        """Return the score matrix of a student, or of ``TOGETHER``: a row for each stage, a column for each task."""
        matrix: ScoreMatrix = self._of("score_matrix", student)
        return matrix

    def final(self, student: int) -> Mapping[str, float | None]:
        """Return the final score of every task, of a student or of ``TOGETHER``."""
        final: Mapping[str, float | None] = self._of("final", student)
        return final

    def figure(self, name: str, student: int) -> float | None:
        """Return one of the figures that a summary holds for each student, such as ``average_accuracy``.

        None if the run does not have the figure: it was not scored for it, or its version did not know it.
        """
        found: Mapping[str, Any] = self.summary.get("together" if student == TOGETHER else name) or {}
        value: float | None = found.get(name if student == TOGETHER else str(student))
        return value

    def _of(self, key: str, student: int) -> Any:
        return self.summary["together"][key] if student == TOGETHER else self.summary[key][str(student)]

    @property
    def wall_seconds(self) -> float:
        """Time that the run took, without interruptions, and including that of teachers trained within it."""
        return float(self.summary["wall_seconds"])

    @property
    def peak_memory_bytes(self) -> Mapping[str, int]:
        """Process -> its peak memory."""
        peaks: Mapping[str, int] = self.summary["peak_memory_bytes"]
        return peaks

    @property
    def exchange(self) -> Mapping[str, float]:
        """Traffic and waiting, averaged over steps and students."""
        exchange: Mapping[str, float] = self.summary["exchange"]
        return exchange

    @property
    def replay(self) -> Mapping[int, Mapping[str, int]]:
        """Stage -> numbers of pseudo-examples that were requested, valid and dropped before it."""
        return {int(stage): counts for stage, counts in self.summary["replay"].items()}

    @property
    def parameters(self) -> Mapping[int, tuple[int, bool]]:
        """Student -> number of parameters in its last checkpoint, and whether these are only those of its adapters."""
        found = self.summary.get("parameters", {})
        return {int(student): (int(one["count"]), bool(one["adapters"])) for student, one in found.items()}

    @property
    def validation(self) -> Mapping[int, Mapping[str, Any]]:
        """Stage -> its validation losses, and the epoch that they chose; empty if nothing was validated."""
        return {int(stage): record for stage, record in self.summary.get("validation", {}).items()}

    @property
    def general(self) -> Mapping[str, Any]:
        """The general text and the perplexities on it; empty if there is none."""
        found: Mapping[str, Any] = self.summary.get("general") or {}
        return found

    def general_course(self, student: int) -> Sequence[float | None]:
        """Return a student's perplexity on the general text before the first stage, and after every stage."""
        course: Sequence[float | None] = self.general["perplexity"][str(student)]
        return course

    @property
    def restarts(self) -> int:
        """Number of times that a stage was learned again because a student was lost."""
        return int(self.summary.get("restarts", 0))

    @property
    def lost_students(self) -> Mapping[int, str]:
        """Lost student -> how it was lost."""
        return {int(student): how for student, how in self.summary.get("lost_students", {}).items()}
