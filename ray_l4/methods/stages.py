"""The kinds of stages: what it means that a method learns its tasks in turn, each alone, or all at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

ALL_TASKS = "all"
"""Name of the one stage of a method that learns all tasks at once."""


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
    """Every stage trains a model of its own from the start, so stages may be learned side by side. Each model is scored
    on its own task, and is called peer 0 whichever worker trains it."""
    joint: bool = False
    """One stage learns all tasks at once."""

    @property
    def ordered(self) -> bool:
        """Whether the order of the tasks matters, so that forgetting and transfer can be measured."""
        return not self.independent and not self.joint

    def stages(self, tasks: Sequence[str]) -> list[Stage]:
        """Return the stages of a stream, in the order in which they are learned."""
        every = tuple(tasks)
        if self.joint:
            return [Stage(ALL_TASKS, every, every)]
        return [Stage(task, (task,), (task,) if self.independent else every) for task in tasks]

    def final_stage(self, task: int, num_stages: int) -> int:
        """Return the stage whose checkpoint gives the final score of the stream's task number ``task``."""
        return task if self.independent else num_stages - 1


STAGE_KINDS: Mapping[str, StageKind] = MappingProxyType(
    {"stream": StageKind(), "separate": StageKind(independent=True), "union": StageKind(joint=True)}
)
"""Every value of ``Method.stages``."""
