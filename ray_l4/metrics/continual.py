"""Continual-learning metrics: accuracy, forgetting and transfer over a stream (REFERENCE.md#continual-metrics).

All functions take a score matrix ``R``: row i has the scores after stage i, column j those of task j, in percent.
``None`` is a cell without a score. A result of ``None`` means undefined: a cell that the formula needs is missing,
there is only one task, or (except for ``average_accuracy``) the numbers of stages and tasks differ, as in a multitask
run, which has one stage and no order. For an unfinished run, pass the square part: ``[row[:n] for row in R[:n]]``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ray_l4.errors import DataError

Scores = Sequence[float | None]
ScoreMatrix = Sequence[Scores]


def average_accuracy(R: ScoreMatrix) -> float | None:
    """Return AA, the mean of the last row, for any number of stages. Raises DataError for a ragged or empty matrix."""
    _num_tasks(R)
    return _mean(R[-1])


def average_incremental_accuracy(R: ScoreMatrix) -> float | None:
    """Return AIA, the mean over stages of the mean over the tasks learned so far.

    Raises DataError for a ragged or empty matrix.
    """
    if not _is_square(R):
        return None
    return _mean([_mean(row[: stage + 1]) for stage, row in enumerate(R)])


def forgetting_by_task(R: ScoreMatrix, trajectory: ScoreMatrix = ()) -> list[float | None]:
    """Return highest score minus final score of every task but the last. It is never negative.

    The highest score is taken over all rows, including the last one and those before the task was learned, so a task
    that never got worse has 0. Scores before a task was learned may be missing; later ones may not. The list is empty
    where forgetting is undefined as a whole.

    ``trajectory`` adds rows to the search for the highest score, such as the scores of every epoch, which a comparison
    with Table 3 of L4 needs. Missing cells of these rows are ignored.

    Raises:
        DataError: a ragged or empty matrix, or trajectory rows of another length.
    """
    square = _is_square(R)
    if any(len(row) != len(R[0]) for row in trajectory):
        raise DataError(f"every row of the trajectory needs {len(R[0])} scores, one per task")
    if not square:
        return []
    rows = [*R, *trajectory]
    drops: list[float | None] = []
    for task in range(len(R) - 1):
        highest = max((score for row in rows if (score := row[task]) is not None), default=None)
        learned = all(row[task] is not None for row in R[task:])
        drops.append(_difference(highest, R[-1][task]) if learned else None)
    return drops


def forgetting(R: ScoreMatrix, trajectory: ScoreMatrix = ()) -> float | None:
    """Return FM, the mean of ``forgetting_by_task``: the one definition of forgetting, for every report and figure.

    Raises DataError as ``forgetting_by_task``.
    """
    return _mean(forgetting_by_task(R, trajectory))


def backward_transfer(R: ScoreMatrix) -> float | None:
    """Return BWT, the mean over all tasks but the last of (final score - score right after learning the task).

    Raises DataError for a ragged or empty matrix.
    """
    if not _is_square(R):
        return None
    return _mean(_difference(R[-1][task], R[task][task]) for task in range(len(R) - 1))


def forward_transfer(R: ScoreMatrix, baseline: Scores) -> float | None:
    """Return FWT, the mean over all tasks but the first of (score right before learning the task - ``baseline``).

    ``baseline`` has the score of an untrained model for every task; the first is not used.

    Raises:
        DataError: a ragged or empty matrix, or a baseline of another length.
    """
    square = _is_square(R)
    if len(baseline) != len(R[0]):
        raise DataError(
            f"the baseline has {len(baseline)} scores but the matrix has {len(R[0])} tasks; expected one score per task"
        )
    if not square:
        return None
    return _mean(_difference(R[task - 1][task], baseline[task]) for task in range(1, len(R)))


def _num_tasks(R: ScoreMatrix) -> int:
    """Return the number of columns. Raises DataError for a ragged or empty matrix."""
    widths = {len(row) for row in R}
    if len(widths) != 1 or 0 in widths:
        raise DataError(
            f"a score matrix needs rows of equal length with at least one score; found lengths {widths or 0}"
        )
    return widths.pop()


def _is_square(R: ScoreMatrix) -> bool:
    return _num_tasks(R) == len(R)


def _difference(x: float | None, y: float | None) -> float | None:
    return None if x is None or y is None else x - y


def _mean(values: Iterable[float | None]) -> float | None:
    """Return the mean, or None if a value is missing or there are no values."""
    numbers = list(values)
    known = [number for number in numbers if number is not None]
    return sum(known) / len(known) if known and len(known) == len(numbers) else None
