"""How often a student is right where its teacher is right (A) and where it is wrong (B): L2KD, Tables 6 and 8."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import pyarrow.parquet as pq

from analysis.results import Results, Run, teachers_of
from ray_l4.errors import ConfigError, RunDirectoryError
from ray_l4.report.aggregate import Measurement, Table, group, row_of

ACCURACY, GROUP_A, GROUP_B = "accuracy", "A", "B"
TEACHER = "teacher"
RIGHT = 100.0
"""Score of an answer that is right in every respect, in percent."""
DIGITS = 2

Pairs = Sequence[tuple[float, float]]
"""Item scores of the teacher and the student on the same examples."""


@dataclass(frozen=True)
class Comparison:
    """A student beside its teachers."""

    block: str
    row: str
    pairs: Mapping[str, Pairs]
    """Task -> scores of its test examples."""


def agreement(results: Results, students: Sequence[int]) -> Table:
    """Accuracy in both groups over the test examples of all tasks together.

    Raises ConfigError if a run has no teachers to compare with, RunDirectoryError if its predictions do not fit theirs.
    """
    return _table((one.block, one.row, list(chain(*one.pairs.values()))) for one in _compare(results, students))


def agreement_by_task(results: Results, students: Sequence[int]) -> Table:
    """Accuracy in both groups for each task, a block each. Raises as ``agreement`` does."""
    compared = list(_compare(results, students))
    return _table((f"{one.block}: {task}", one.row, one.pairs[task]) for task in results.tasks for one in compared)


def split(pairs: Pairs) -> dict[str, float | None]:
    """Mean score of the student overall, in group A and in group B; None for an empty group."""
    groups = {
        ACCURACY: [student for _, student in pairs],
        GROUP_A: [student for teacher, student in pairs if teacher >= RIGHT],
        GROUP_B: [student for teacher, student in pairs if teacher < RIGHT],
    }
    return {name: sum(scores) / len(scores) if scores else None for name, scores in groups.items()}


def _table(compared: Iterable[tuple[str, str, Pairs]]) -> Table:
    measured = [Measurement(block, row, split(pairs)) for block, row, pairs in compared]
    return group(measured, (ACCURACY, GROUP_A, GROUP_B), digits=DIGITS)


def _compare(results: Results, students: Sequence[int]) -> Iterator[Comparison]:
    """The teachers beside themselves, once for each order and seed, then every student beside its teachers.

    Runs of one seed may have trained equal teachers each in its own folder: these count once.
    """
    teachers = {run.path: _teachers(run, results) for run in results.runs}
    trained = {teacher.path for teacher in teachers.values()}
    learners = [run for run in results.runs if run.path not in trained]
    serving = {(run.block, teachers[run.path].seed): teachers[run.path] for run in learners}
    for (block, _), teacher in serving.items():
        yield Comparison(block, TEACHER, _pairs(teacher, teacher, 0))
    for run in learners:
        for student in students:
            if student in run.students():
                yield Comparison(run.block, row_of(run.variant, student), _pairs(run, teachers[run.path], student))


def _teachers(run: Run, results: Results) -> Run:
    own = teachers_of(run)
    if own:
        return own
    for other in results.runs:
        candidate = other if other.summary["method"] == "single-qa-lm" else teachers_of(other)
        if candidate and other.seed == run.seed:
            return candidate
    raise ConfigError(
        f"{run.path}: {run.variant} has no teachers, and no other run with seed {run.seed} has. Add a run of an l2kd "
        "method or of single-qa-lm with this seed."
    )


def _pairs(run: Run, teachers: Run, student: int) -> dict[str, Pairs]:
    found: dict[str, Pairs] = {}
    for task in run.tasks:
        theirs, mine = _item_scores(teachers, 0, task), _item_scores(run, student, task)
        if theirs.keys() != mine.keys():
            only = min(theirs.keys() ^ mine.keys())
            raise RunDirectoryError(
                f"{run.path} and its teachers {teachers.path} answered different test examples of {task}, such as "
                f"{only!r}; they can only be compared on the same ones"
            )
        found[task] = [(theirs[sample], mine[sample]) for sample in theirs]
    return found


def _item_scores(run: Run, student: int, task: str) -> dict[str, float]:
    """Sample id -> score of the answer, in percent, of a task's final checkpoint."""
    path = run.path / "predictions" / f"{run.final_cell(student, task).name}.parquet"
    if not path.is_file():
        raise RunDirectoryError(f"{path}: is not there, but the answers to the test set are needed to compare them")
    table = pq.read_table(path)
    if "score" not in table.column_names:
        raise RunDirectoryError(f"{path}: has no column 'score': an older version wrote it. Run {run.path} again.")
    return dict(zip(*(table.column(name).to_pylist() for name in ("sample_id", "score")), strict=True))
