"""The kinds of stages: tasks learned one after another, each alone, or all at once."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from ray_l4.config.stream_names import distinct, item_names

ALL_TASKS = "all"
"""Name of the single stage of a method that learns all tasks at once."""


@dataclass(frozen=True)
class Stage:
    """The learning between two rows of the score matrix."""

    name: str
    items: tuple[str, ...]
    """Items of the stream, by the names of ``item_names``, whose examples it learns."""
    tasks: tuple[str, ...]
    """Their tasks, each once."""
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
    only_last: bool = False
    """Whether that stage learns the examples of the last item alone, beside those that an earlier run replayed."""

    @property
    def ordered(self) -> bool:
        """Whether the order of the tasks matters, so that forgetting and transfer can be measured."""
        return not self.independent and not self.joint

    def stages(self, stream: Sequence[str]) -> list[Stage]:
        """Return the stages of a stream, in order. ``stream``: the task of every item; a task may come back."""
        tasks, items = distinct(stream), item_names(stream)
        if self.joint:
            return [Stage(ALL_TASKS, tuple(items[-1:] if self.only_last else items), tasks, tasks)]
        return [
            Stage(item, (item,), (task,), (task,) if self.independent else tasks)
            for item, task in zip(items, stream, strict=True)
        ]

    def final_stage(self, task: str, learned: Sequence[Collection[str]]) -> int:
        """Return the index of the stage whose checkpoint gives the final score of ``task``.

        ``learned``: the tasks that each stage learned.
        """
        last = len(learned) - 1
        return max(stage for stage in range(len(learned)) if task in learned[stage]) if self.independent else last


STAGE_KINDS: Mapping[str, StageKind] = MappingProxyType(
    {
        "stream": StageKind(),
        "separate": StageKind(independent=True),
        "union": StageKind(joint=True),
        "last": StageKind(joint=True, only_last=True),
    }
)
"""The kind of stages for every value of ``Method.stages``."""
