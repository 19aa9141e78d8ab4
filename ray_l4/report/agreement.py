"""Accuracy of students where their teacher is right (group A) and where it is wrong (group B): L2KD, Tables 6 and 8."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from ray_l4.errors import ConfigError, RunDirectoryError
from ray_l4.report.aggregate import Measurement, ResultTable, group, row_label
from ray_l4.report.finished_run import FinishedRun
from ray_l4.report.results import Results

ACCURACY, GROUP_A, GROUP_B = "accuracy", "A", "B"
TEACHER = "teacher"
RIGHT = 100.0
"""Score in percent of an answer that is right in every respect."""
DIGITS = 2

Pairs = Sequence[tuple[float, float]]
"""Scores of the answers to the same examples: (teacher, student)."""


@dataclass(frozen=True)
class Comparison:
    """A student compared with its teachers."""

    block: str
    row: str
    pairs: Mapping[str, Pairs]
    """Task -> scores of its test examples."""


def agreement(results: Results, students: Sequence[int]) -> ResultTable:
    """Return accuracies in both groups over the test examples of all tasks together.

    Raises ConfigError if a run has no teachers to compare with, RunDirectoryError if its predictions do not match
    theirs.
    """
    return _table((one.block, one.row, list(chain(*one.pairs.values()))) for one in _compare(results, students))


def agreement_by_task(results: Results, students: Sequence[int]) -> ResultTable:
    """Return accuracies in both groups with a block for each task. Raises as ``agreement`` does."""
    compared = list(_compare(results, students))
    return _table((f"{one.block}: {task}", one.row, one.pairs[task]) for task in results.tasks for one in compared)


def split(pairs: Pairs) -> dict[str, float | None]:
    """Return the student's mean score overall, in group A and in group B; None for an empty group."""
    groups = {
        ACCURACY: [student for _, student in pairs],
        GROUP_A: [student for teacher, student in pairs if teacher >= RIGHT],
        GROUP_B: [student for teacher, student in pairs if teacher < RIGHT],
    }
    return {name: sum(scores) / len(scores) if scores else None for name, scores in groups.items()}


def _table(compared: Iterable[tuple[str, str, Pairs]]) -> ResultTable:
    measured = [Measurement(block, row, split(pairs)) for block, row, pairs in compared]
    return group(measured, (ACCURACY, GROUP_A, GROUP_B), digits=DIGITS)


def _compare(results: Results, students: Sequence[int]) -> Iterator[Comparison]:
    """Yield the teachers compared with themselves, once for each order and seed, then every student with its teachers.

    Runs of one seed may each have trained equal teachers in their own folders: these count once.
    """
    teachers = {run.path: _teachers(run, results) for run in results.runs}
    trained = {teacher.path for teacher in teachers.values()}
    learners = [run for run in results.runs if run.path not in trained]
    serving = {(run.order, teachers[run.path].seed): teachers[run.path] for run in learners}
    for (order, _), teacher in serving.items():
        yield Comparison(order, TEACHER, _pairs(teacher, teacher, 0))
    for run in learners:
        for student in students:
            if student in run.students:
                yield Comparison(run.order, row_label(run.variant, student), _pairs(run, teachers[run.path], student))


def _teachers(run: FinishedRun, results: Results) -> FinishedRun:
    """Return the run's teachers; for a run without, those of another run with its seed."""
    if run.teachers is not None:
        return run.teachers
    for other in results.runs:
        candidate = other if other.method == "single-qa-lm" else other.teachers
        if candidate and other.seed == run.seed:
            return candidate
    raise ConfigError(
        f"{run.path}: {run.variant} has no teachers, and no other run with seed {run.seed} has. Add a run of an l2kd "
        "method or of single-qa-lm with this seed."
    )


def _pairs(run: FinishedRun, teachers: FinishedRun, student: int) -> dict[str, Pairs]:
    found: dict[str, Pairs] = {}
    for task in run.tasks:
        theirs, mine = _answer_scores(teachers, 0, task), _answer_scores(run, student, task)
        if theirs.keys() != mine.keys():
            only = min(theirs.keys() ^ mine.keys())
            raise RunDirectoryError(
                f"{run.path} and its teachers {teachers.path} answered different test examples of {task}, such as "
                f"{only!r}; they can only be compared on the same ones"
            )
        found[task] = [(theirs[sample_id], mine[sample_id]) for sample_id in theirs]
    return found


def _answer_scores(run: FinishedRun, student: int, task: str) -> dict[str, float]:
    """Return the score in percent of each answer (by ``sample_id``) of a task's final checkpoint."""
    cell = run.final_cell(student, task)
    table, path = run.predictions(cell), run.predictions_path(cell)
    if table is None:
        raise RunDirectoryError(f"{path}: no such file, but the comparison needs these answers to the test set")
    if "score" not in table.column_names:
        raise RunDirectoryError(f"{path}: has no column 'score': an older version wrote it. Run {run.path} again.")
    return dict(zip(*(table.column(name).to_pylist() for name in ("sample_id", "score")), strict=True))
