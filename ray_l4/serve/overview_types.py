"""What an overview of a run holds: JSON for ``GET /v1/overview`` and the page. Scores are percentages."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Served(_Part):
    """The model that answers."""

    stage: int
    name: str
    """Name of the stage."""
    student: int


class TaskOverview(_Part):
    """A task that the model has learned, will learn, or that waits in the inbox."""

    name: str
    metric: str
    question: str | None
    """The question of every example, if the task's settings name one."""
    stages: list[int]
    """Finished stages that learned it."""
    score: float | None
    """Score of the served model."""
    best: float | None
    """Highest score of the best student of any stage up to the served one."""
    forgetting: float | None
    """``best`` minus ``score``; None for a task that the served model has not learned."""
    waiting: int
    """Examples in the inbox that no stage was given yet."""
    is_new: bool
    """Whether it is in no stage of the run yet."""


class StageOverview(_Part):
    """A stage of the run."""

    stage: int
    name: str
    tasks: list[str]
    state: Literal["finished", "under way", "to come"]
    served: bool
    promoted: bool | None
    """What was decided about it last; None if nothing was."""
    why: str | None
    when: str | None
    """When that was decided."""
    finished: str | None
    """When it ended: local time with its offset, from the times of its files."""
    student: int | None
    """The best student: the one with the highest mean of its scores over the tasks learned by then."""
    scores: dict[str, float | None]
    """Its scores, for all tasks of the stream."""


class Learning(_Part):
    """The stage under way."""

    stage: int
    name: str
    tasks: list[str]
    running: bool
    """Whether a process is at work on it; otherwise it was interrupted."""
    epochs_done: int
    epochs: int


class Overview(_Part):
    """A run at one moment."""

    name: str
    method: str
    students: int
    served: Served | None
    tasks: list[TaskOverview]
    stages: list[StageOverview]
    learning: Learning | None
    average: float | None
    """Mean score of the served model over the tasks that it has learned."""
    forgetting: float | None
    """Mean forgetting over the tasks that it learned before its last stage."""
    problems: list[str]
    """What is wrong with the inbox."""
    when: str
