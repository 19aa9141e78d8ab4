"""The kinds of stages: tasks learned one after another, each alone, or all at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

ALL_TASKS = "all"
"""Name of the single stage of a method that learns all tasks at once."""


@dataclass(frozen=True)
class Stage:
    """The learning between two rows of the score matrix."""

    name: str
    tasks: tuple[str, ...]
    """Tasks whose examples it learns from."""
    scored: tuple[str, ...]
    """Tasks that its checkpoints are scored on."""


@dataclass(frozen=True)
class StageKind:
    """One way to divide a stream of tasks into stages."""

    independent: bool = False
    """Whether every stage trains a new model from the start, so that stages can run in parallel.

    Each model is scored on its own task and is called peer 0, whichever worker trains it.
    """
    joint: bool = False
    """Whether a single stage learns all tasks at once."""

    @property
    def ordered(self) -> bool:
        """Whether the order of the tasks matters, so that forgetting and transfer can be measured."""
        return not self.independent and not self.joint

    def stages(self, tasks: Sequence[str]) -> list[Stage]:
        """Return the stages of a stream, in order."""
        every = tuple(tasks)
        if self.joint:
            return [Stage(ALL_TASKS, every, every)]
        return [Stage(task, (task,), (task,) if self.independent else every) for task in tasks]

    def final_stage(self, task: int, num_stages: int) -> int:
        """Return the index of the stage whose checkpoint gives the final score of the task with index ``task``."""
        return task if self.independent else num_stages - 1


STAGE_KINDS: Mapping[str, StageKind] = MappingProxyType(
    {"stream": StageKind(), "separate": StageKind(independent=True), "union": StageKind(joint=True)}
)
"""The kind of stages for every value of ``Method.stages``."""
