"""Export of tasks to Parquet, and summary figures of tasks."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from ray_l4.config.experiment import DataConfig
from ray_l4.config.stream import TaskConfig
from ray_l4.store.atomic import write_table
from ray_l4.tasks.files import MissingFileError
from ray_l4.tasks.registry import load, metric_of
from ray_l4.tasks.rows import Split

log = logging.getLogger(__name__)

SPLITS: tuple[Split, ...] = ("train", "dev", "test")


@dataclass(frozen=True)
class SplitSummary:
    """Figures of one split. Lengths are means, in whitespace-separated words."""

    split: Split
    examples: int
    context_words: float
    question_words: float
    answer_words: float
    references: float
    """Mean number of accepted answers per example."""
    first: list[dict[str, str]]
    """The first examples, each with context, question, answer and sample_id."""


@dataclass(frozen=True)
class TaskSummary:
    """Figures of one task."""

    task: str
    metric: str
    splits: list[SplitSummary]


def prepare(tasks: Sequence[TaskConfig], data: DataConfig, out_dir: Path) -> list[Path]:
    """Write ``<out_dir>/<task>/<split>.parquet`` for every split that exists. Returns the paths.

    Files are written atomically. The folder of a task can be read as a custom task.

    Raises:
        ConfigError, DataError: as ``registry.load``.
    """
    written = []
    for task in tasks:
        for split, table in _splits(task, data):
            path = out_dir / task.name / f"{split}.parquet"
            write_table(path, table)
            log.info("%s: %d examples written", path, table.num_rows)
            written.append(path)
    return written


def summary(task: TaskConfig, data: DataConfig, first: int = 2) -> TaskSummary:
    """Return counts, mean lengths and the ``first`` examples of every split of a task.

    Raises:
        ConfigError, DataError: as ``registry.load``.
    """
    splits = [_summary(split, table, first) for split, table in _splits(task, data)]
    return TaskSummary(task.name, metric_of(task), splits)


def _splits(task: TaskConfig, data: DataConfig) -> Iterator[tuple[Split, pa.Table]]:
    for split in SPLITS:
        try:
            table = load(task, split, data)
        except MissingFileError as error:
            if split != "dev":
                raise
            log.info("%s has no dev split: %s", task.name, error)
            continue
        yield split, table


def _summary(split: Split, table: pa.Table, first: int) -> SplitSummary:
    shown = table.select(["context", "question", "answer", "sample_id"]).slice(0, first)
    return SplitSummary(
        split=split,
        examples=table.num_rows,
        context_words=_mean_words(table.column("context")),
        question_words=_mean_words(table.column("question")),
        answer_words=_mean_words(table.column("answer")),
        references=pc.mean(pc.list_value_length(table.column("references"))).as_py(),
        first=shown.to_pylist(),
    )


def _mean_words(texts: pa.ChunkedArray) -> float:
    words = pc.utf8_split_whitespace(pc.utf8_trim_whitespace(texts))
    lengths = pc.if_else(pc.equal(pc.utf8_trim_whitespace(texts), ""), 0, pc.list_value_length(words))
    return float(pc.mean(lengths).as_py())
