"""Continual-learning metrics: accuracy, forgetting and transfer over a stream (REFERENCE.md#continual-metrics).

All functions take a score matrix ``R``: row i has the scores after stage i, column j those of task j, in percent.
``learned`` says which task, as a column, each stage learned; a task may come back in a later stage. If not given, there
are as many stages as tasks, and stage i learned task i. ``None`` is a cell without a score. A result of ``None`` means
undefined: a cell that the formula needs is missing, there is only one task, or (except for ``average_accuracy``) there
is no order, as in a multitask run, which has one stage. For an unfinished run, pass the rows and columns that it has.
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


def average_incremental_accuracy(R: ScoreMatrix, learned: Sequence[int] | None = None) -> float | None:
    """Return AIA, the mean over stages of the mean over the tasks learned so far.

    Raises DataError for a ragged or empty matrix, or if ``learned`` does not fit it.
    """
    order = _order(R, learned)
    if order is None:
        return None
    return _mean([_mean([row[task] for task in dict.fromkeys(order[: stage + 1])]) for stage, row in enumerate(R)])


def forgetting_by_task(
    R: ScoreMatrix, trajectory: ScoreMatrix = (), learned: Sequence[int] | None = None
) -> dict[int, float | None]:
    """Return the column of every task but the one learned last -> its highest score minus its final score.

    It is never negative. The highest score is taken over all rows, including the last one and those before the task was
    learned, so a task that never got worse has 0. Scores before a task was learned may be missing; later ones may not.
    The result is empty where forgetting is undefined as a whole.

    ``trajectory`` adds rows to the search for the highest score, such as the scores of every epoch, which a comparison
    with Table 3 of L4 needs. Missing cells of these rows are ignored.

    Raises:
        DataError: a ragged or empty matrix, trajectory rows of another length, or ``learned`` does not fit the matrix.
    """
    order = _order(R, learned)
    if any(len(row) != len(R[0]) for row in trajectory):
        raise DataError(f"every row of the trajectory needs {len(R[0])} scores, one per task")
    rows = [*R, *trajectory]
    drops: dict[int, float | None] = {}
    for task in _before_last(order):
        highest = max((score for row in rows if (score := row[task]) is not None), default=None)
        scored = all(row[task] is not None for row in R[_first(order, task) :])
        drops[task] = _difference(highest, R[-1][task]) if scored else None
    return drops


def forgetting(R: ScoreMatrix, trajectory: ScoreMatrix = (), learned: Sequence[int] | None = None) -> float | None:
    """Return FM, the mean of ``forgetting_by_task``: the one definition of forgetting, for every report and figure.

    Raises DataError as ``forgetting_by_task``.
    """
    return _mean(forgetting_by_task(R, trajectory, learned).values())


def backward_transfer(R: ScoreMatrix, learned: Sequence[int] | None = None) -> float | None:
    """Return BWT, the mean over all tasks but the one learned last of (final score - score right after learning it).

    A task that came back counts from the last stage that learned it: what it gained there is no transfer. Raises
    DataError for a ragged or empty matrix, or if ``learned`` does not fit it.
    """
    order = _order(R, learned)
    return _mean(_difference(R[-1][task], R[_last(order, task)][task]) for task in _before_last(order))


def forward_transfer(R: ScoreMatrix, baseline: Scores, learned: Sequence[int] | None = None) -> float | None:
    """Return FWT, the mean over all tasks but that of the first stage of (score right before the task was first learned
    - ``baseline``).

    ``baseline`` has the score of an untrained model for every task; that of the first is not used.

    Raises:
        DataError: a ragged or empty matrix, a baseline of another length, or ``learned`` does not fit the matrix.
    """
    order = _order(R, learned)
    if len(baseline) != len(R[0]):
        raise DataError(
            f"the baseline has {len(baseline)} scores but the matrix has {len(R[0])} tasks; expected one score per task"
        )
    if order is None:
        return None
    later = [task for task in dict.fromkeys(order) if task != order[0]]
    return _mean(_difference(R[_first(order, task) - 1][task], baseline[task]) for task in later)


def _num_tasks(R: ScoreMatrix) -> int:
    """Return the number of columns. Raises DataError for a ragged or empty matrix."""
    widths = {len(row) for row in R}
    if len(widths) != 1 or 0 in widths:
        raise DataError(
            f"a score matrix needs rows of equal length with at least one score; found lengths {widths or 0}"
        )
    return widths.pop()


def _order(R: ScoreMatrix, learned: Sequence[int] | None) -> Sequence[int] | None:
    """Return the task that each stage learned; None if there is no order.

    Raises DataError for a ragged or empty matrix, or if ``learned`` does not have one of its columns for each row.
    """
    num_tasks = _num_tasks(R)
    if learned is None:
        return range(num_tasks) if len(R) == num_tasks else None
    if len(learned) != len(R) or not all(0 <= task < num_tasks for task in learned):
        raise DataError(
            f"learned: expected one of the columns 0 to {num_tasks - 1} for each of {len(R)} stages, found "
            f"{list(learned)}"
        )
    return learned


def _before_last(order: Sequence[int] | None) -> list[int]:
    """Return the tasks that were learned, but for the one learned last, in the order of their columns."""
    return [] if order is None else sorted(set(order) - {order[-1]})


def _first(order: Sequence[int] | None, task: int) -> int:
    """Return the first stage that learned a task."""
    assert order is not None
    return list(order).index(task)


def _last(order: Sequence[int] | None, task: int) -> int:
    """Return the last stage that learned a task."""
    assert order is not None
    return len(order) - 1 - list(reversed(order)).index(task)


def _difference(x: float | None, y: float | None) -> float | None:
    return None if x is None or y is None else x - y


def _mean(values: Iterable[float | None]) -> float | None:
    """Return the mean, or None if a value is missing or there are no values."""
    numbers = list(values)
    known = [number for number in numbers if number is not None]
    return sum(known) / len(known) if known and len(known) == len(numbers) else None
