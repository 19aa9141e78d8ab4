"""How much a model has learned and forgotten over a stream of tasks (REFERENCE.md#continual-metrics).

All functions read a score matrix ``R``: row i holds the scores after stage i, column j those of task j, in percent.
``None`` is a cell that was not scored. A result of ``None`` means undefined: a cell that the formula needs is missing,
there is a single task, or, for all but ``average_accuracy``, the number of stages is not the number of tasks (a
multitask run has one stage and no order). For a run under way pass the square part: ``[row[:n] for row in R[:n]]``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ray_l4.errors import DataError

Scores = Sequence[float | None]
ScoreMatrix = Sequence[Scores]


def average_accuracy(R: ScoreMatrix) -> float | None:
    """AA: mean of the last row. Defined for any number of stages. Raises DataError for a ragged or empty matrix."""
    _num_tasks(R)
    return _mean(R[-1])


def average_incremental_accuracy(R: ScoreMatrix) -> float | None:
    """AIA: mean over stages of the mean over the tasks seen so far. Raises DataError for a ragged or empty matrix."""
    if not _is_square(R):
        return None
    return _mean([_mean(row[: stage + 1]) for stage, row in enumerate(R)])


def forgetting(R: ScoreMatrix, trajectory: ScoreMatrix = ()) -> float | None:
    """FM: mean over all tasks but the last of (highest score - final score); never negative.

    The highest score is taken over all rows, the last one and those before the task was learned included, so a task
    that never got worse contributes 0. Scores before a task was learned may be missing; later ones may not.

    ``trajectory`` adds rows, such as the scores of every epoch, over which the highest score is also taken: needed
    to compare with L4's Table 3. Its missing cells are skipped.

    Raises:
        DataError: a ragged or empty matrix, or trajectory rows of another length.
    """
    square = _is_square(R)
    if any(len(row) != len(R[0]) for row in trajectory):
        raise DataError(f"every row of the trajectory needs {len(R[0])} scores, one per task")
    if not square:
        return None
    rows = [*R, *trajectory]
    drops: list[float | None] = []
    for task in range(len(R) - 1):
        highest = max((score for row in rows if (score := row[task]) is not None), default=None)
        learned = all(row[task] is not None for row in R[task:])
        drops.append(_difference(highest, R[-1][task]) if learned else None)
    return _mean(drops)


def backward_transfer(R: ScoreMatrix) -> float | None:
    """BWT: mean over all tasks but the last of (final score - score right after learning it). Raises DataError for a
    ragged or empty matrix."""
    if not _is_square(R):
        return None
    return _mean(_difference(R[-1][task], R[task][task]) for task in range(len(R) - 1))


def forward_transfer(R: ScoreMatrix, baseline: Scores) -> float | None:
    """FWT: mean over all tasks but the first of (score right before learning it - ``baseline``).

    ``baseline`` holds one score per task, those of an untrained model; the first is not used.

    Raises:
        DataError: a ragged or empty matrix, or a baseline of another length.
    """
    square = _is_square(R)
    if len(baseline) != len(R[0]):
        raise DataError(f"the baseline has {len(baseline)} scores but the matrix {len(R[0])} tasks; give one for each")
    if not square:
        return None
    return _mean(_difference(R[task - 1][task], baseline[task]) for task in range(1, len(R)))


def _num_tasks(R: ScoreMatrix) -> int:
    widths = {len(row) for row in R}
    if len(widths) != 1 or 0 in widths:
        raise DataError(f"a score matrix needs rows of one length, at least one score each; got lengths {widths or 0}")
    return widths.pop()


def _is_square(R: ScoreMatrix) -> bool:
    return _num_tasks(R) == len(R)


def _difference(x: float | None, y: float | None) -> float | None:
    return None if x is None or y is None else x - y


def _mean(values: Iterable[float | None]) -> float | None:
    """The mean, or ``None`` when a value is missing or there is none."""
    numbers = list(values)
    known = [number for number in numbers if number is not None]
    return sum(known) / len(known) if known and len(known) == len(numbers) else None
