"""Scores of a finished run, computed again from its stored answers with the metrics of this version."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from ray_l4.config.stream import TaskConfig
from ray_l4.errors import RunDirectoryError
from ray_l4.metrics.registry import METRICS, Item, item_scores, score
from ray_l4.report.finished_run import FinishedRun
from ray_l4.report.markdown import run_report
from ray_l4.report.run_files import Headline, read_headlines
from ray_l4.report.summary import summarise
from ray_l4.setup.begun import kept_tests
from ray_l4.store.atomic import write_text
from ray_l4.store.mirror import mirror_of
from ray_l4.store.records import write_score
from ray_l4.store.run_directory import Cell, RunDirectory
from ray_l4.store.sealed import write_record
from ray_l4.store.tables import read_table
from ray_l4.tasks.registry import load, metric_of

_ANSWERS = ("sample_id", "prediction", "references")


@dataclass(frozen=True)
class Change:
    """The headline score of a cell before and after."""

    cell: Cell
    old: Headline
    new: Headline


def rescore(run: RunDirectory, *, write: bool) -> dict[Path, list[Change]]:
    """Score all stored answers of a finished run again, and those of the teachers that were trained within it.

    Returns the run directories with the changes of their cells. Unless ``write`` is false, scores, predictions,
    summary and the reports that are there are written anew, and then copied to the run's ``storage_path``, if it has
    one. Nothing is written before all scores are computed.

    Raises:
        RunDirectoryError: the run has not finished, is in use, is damaged, or lacks the answers of a score.
        DataError: a metric needs the test set (``Metric.needs_meta``), and it is not there or is another one.
    """
    teachers = RunDirectory(run.teachers())
    parts = [run, *([teachers] if (teachers.path / "summary.json").is_file() else [])]
    mirror = mirror_of(run, run.cluster()) if write else None
    with run.lock() if write else nullcontext():
        if mirror is not None:
            mirror.check(run.path, new=False)
        computed = {part: _compute(part) for part in parts}
        if write:
            for part, cells in computed.items():
                _write(part, cells)
    if mirror is not None:
        mirror.push(run.path)
    return {part.path: [cell.change for cell in cells] for part, cells in computed.items()}


@dataclass(frozen=True)
class _Rescored:
    """A cell with its new contents."""

    change: Change
    record: Mapping[str, Any]
    predictions: pa.Table


class _TestSet:
    """A task's metric and, if the metric needs more than stored answers, its test examples."""

    def __init__(self, run: RunDirectory, task: TaskConfig) -> None:
        self.metric = METRICS[metric_of(task)]
        self._run, self._task = run, task

    def items(self, answers: pa.Table, path: Path) -> list[Item]:
        """Return the items to score. ``path``: the file of the answers, for messages."""
        ids: list[str] = answers["sample_id"].to_pylist()
        metas = self._metas(ids, path) if self.metric.needs_meta else [""] * len(ids)
        texts = zip(answers["prediction"].to_pylist(), answers["references"].to_pylist(), ids, metas, strict=True)
        return [Item(prediction, tuple(references), name, meta) for prediction, references, name, meta in texts]

    def _metas(self, ids: Sequence[str], path: Path) -> list[str]:
        missing = [name for name in ids if name not in self._known_metas]
        if missing:
            raise RunDirectoryError(
                f"{path}: {missing[0]!r} is not in the test set of task {self._task.name!r} as it is now, which metric "
                f"{self.metric.name!r} needs. Restore the data that the run was made with (data in its config.yaml)."
            )
        return [self._known_metas[name] for name in ids]

    @cached_property
    def _known_metas(self) -> dict[str, str]:
        """Id -> meta of all test examples: the run may have left out some, and limited those that it scored."""
        examples = kept_tests(self._run, self._task.name)
        if examples is None:
            examples = load(self._task, "test", self._run.experiment().data)
        return dict(zip(examples["sample_id"].to_pylist(), examples["meta"].to_pylist(), strict=True))


def _compute(run: RunDirectory) -> list[_Rescored]:
    """Score all cells of a finished run, and write nothing."""
    run.summary()
    records, headlines = run.scores(), read_headlines(run)
    if not records:
        raise RunDirectoryError(f"{run.path / 'scores'}: holds no scores, so there is nothing to score again")
    tests = {name: _TestSet(run, task) for name, task in run.experiment().of_tasks.items()}
    unknown = sorted({cell.task for cell in records} - tests.keys())
    if unknown:
        raise RunDirectoryError(f"{run.path}: has scores of task {unknown[0]!r}, which its config.yaml does not name")
    return [_cell(run, cell, records[cell], headlines[cell], tests[cell.task]) for cell in sorted(records)]


def _cell(run: RunDirectory, cell: Cell, record: Mapping[str, Any], old: Headline, tests: _TestSet) -> _Rescored:
    path = run.path / "predictions" / f"{cell.name}.parquet"
    answers = read_table(path, _ANSWERS, optional=None)
    if answers is None:
        raise RunDirectoryError(
            f"{path}: is missing. Scores are computed again from the answers in predictions/, and this run directory "
            "lacks them for a score that it has; learn the stream again to get them."
        )
    if answers.num_rows != record.get("examples", answers.num_rows):
        raise RunDirectoryError(
            f"{path}: has {answers.num_rows} answers, but its score is one of {record['examples']}; the run is damaged"
        )
    items = tests.items(answers, path)
    values, headline = score(tests.metric.name, items), tests.metric.headline
    column = pa.array(item_scores(tests.metric.name, items), pa.float64())
    known = answers.schema.get_field_index("score")
    return _Rescored(
        Change(cell, old, Headline(headline, values[headline])),
        {**record, "headline": headline, "values": values},
        answers.append_column("score", column) if known < 0 else answers.set_column(known, "score", column),
    )


def _write(run: RunDirectory, cells: Sequence[_Rescored]) -> None:
    for cell in cells:
        write_score(
            run, cell.change.cell, cell.record, {name: cell.predictions[name] for name in cell.predictions.column_names}
        )
    write_results(run)


def write_results(run: RunDirectory) -> None:
    """Write the summary of a finished run anew, from its scores, and the reports that are there."""
    write_record(run.path / "summary.json", summarise(run))
    finished = FinishedRun.open(run.path)
    if (run.path / "report.md").is_file():
        write_text(run.path / "report.md", run_report(finished))
    if (run.path / "report.html").is_file():
        from ray_l4.report.html.page import render  # loads matplotlib

        write_text(run.path / "report.html", render([finished]))
