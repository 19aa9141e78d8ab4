"""What a run's checkpoint is asked beside a user's text: a task's own question, and how long an answer may be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ray_l4.report.run_files import read_questions
from ray_l4.setup.inspected import Inspected
from ray_l4.setup.loaded import DEFAULT_ANSWER, AnswerRoom
from ray_l4.store.checkpoints import Checkpoint
from ray_l4.store.record_types import Score
from ray_l4.store.run_directory import Cell, read_record
from ray_l4.text.test_sets import LONGEST_KEPT


@dataclass(frozen=True)
class Habit:
    """How a task is asked."""

    question: str | None
    """The question that all its examples share; None if they differ."""
    room: AnswerRoom


def habit_of(found: Inspected, task: str, longest: int) -> tuple[Habit, bool]:
    """Return how a task is asked, and whether that stays so: a run tells it all once it has scored the task.

    ``longest``: the longest sequence of the model, half of which an answer gets at most if nothing tells.
    """
    settled = found.checkpoint is None or scored_cell(found.checkpoint, task) is not None
    return Habit(usual_question(found, task), answer_room(found, task, None, longest // 2)), settled


def usual_question(found: Inspected, task: str) -> str | None:
    """Return the question that all examples of a task share, as set or as recorded; None if they differ."""
    configured = next((own.question for own in found.experiment.stream if own.name == task), None)
    if configured is not None or found.checkpoint is None:
        return configured
    cell = scored_cell(found.checkpoint, task)
    questions = read_questions(found.checkpoint.run, cell) if cell is not None else set()
    (only,) = questions if len(questions) == 1 else (None,)
    return only if only and len(only) <= LONGEST_KEPT else None


def answer_room(
    found: Inspected, task: str, max_new_tokens: int | None, most_unknown: int = DEFAULT_ANSWER
) -> AnswerRoom:
    """Return how long answers may be: as given, as the run recorded it with a score, or as set.

    ``most_unknown``: tokens at most if none of these tells.
    """
    cell = scored_cell(found.checkpoint, task) if found.checkpoint else None
    record: dict[str, Any] = found.checkpoint.run.score(cell) if found.checkpoint and cell else {}
    configured = max_new_tokens or found.experiment.evaluation.max_new_tokens
    longest = configured or record.get("max_new_tokens", min(DEFAULT_ANSWER, most_unknown))
    return AnswerRoom(longest, record.get("reserved", longest))


def scored_cell(checkpoint: Checkpoint, task: str) -> Cell | None:
    """Return the cell of a checkpoint's score on a task; while it is not scored, that of another checkpoint.

    Both have answered the same test set. None if none was scored on the task.
    """
    own = checkpoint.cell(task)
    if checkpoint.run.score(own):
        return own
    for path, cell in checkpoint.run.score_files():
        if str(read_record(path, Score).get("task", cell.task)) == task:
            return Cell(cell.stage, cell.epoch, cell.student, task)
    return None
