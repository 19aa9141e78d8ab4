"""The answers that our teachers decoded for Seq-KD, beside those that the references published.

::

    python -m analysis.distil_check RUN_DIR... --converted FOLDER

RUN_DIR is a finished run of a method whose teachers answer (``l2kd-seq``, ``l2kd-seq-soft``, ``multi-seq-kd``) that
learned the references' own examples (``data.converted``). FOLDER holds ``<task>_to_squad-distil-v2.0.json``: the same
examples with the answers of the references' teachers. All figures are over the examples that our teachers answered.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from analysis.command import exit_status
from analysis.results import Run, read_run
from ray_l4.config.experiment import DataConfig, TaskConfig
from ray_l4.errors import ConfigError, RunDirectoryError
from ray_l4.metrics.registry import Item, score
from ray_l4.report.markdown import number, table
from ray_l4.tasks.registry import load
from ray_l4.tasks.squad import is_converted

PAIRS = (("ours", "true"), ("published", "true"), ("ours", "published"))
"""Fields of an answer: what is looked at, and what it is held against."""
HEADER = (
    *("run", "task", "examples"),
    *(f"{said} = {reference}" for said, reference in PAIRS),
    *(f"ROUGE {said}, {reference}" for said, reference in PAIRS),
)


@dataclass(frozen=True)
class Answer:
    """What three have to say to one training example."""

    sample_id: str
    ours: str
    published: str
    true: str


def answers(run: Run, task: TaskConfig, converted: Path) -> list[Answer]:
    """All examples of a task that the run's teacher answered.

    Raises:
        ConfigError: there are no published answers to this task, or the run learned other examples than these.
        RunDirectoryError: the run has no answers to the task, or to examples that it did not learn.
    """
    path = run.directory.answers(task.name)
    if not path.is_file():
        raise RunDirectoryError(
            f"{path}: is not there: no teacher of this run answered {task.name}. Give runs of l2kd-seq, l2kd-seq-soft "
            "or multi-seq-kd"
        )
    if not is_converted(converted, task.name):
        raise ConfigError(f"--converted {converted}: holds no converted files of {task.name}")
    everything = task.model_copy(update={"path": None, "train": "all"})
    published = _by_id(load(everything, "train", DataConfig(converted=converted, distil=True)))
    learned = _by_id(load(task, "train", run.experiment.data.model_copy(update={"distil": False})))
    decoded = dict(zip(*(pq.read_table(path)[name].to_pylist() for name in ("sample_id", "answer")), strict=True))
    if unknown := decoded.keys() - learned.keys():
        raise RunDirectoryError(f"{path}: answers example {min(unknown)!r}, which the run's data does not have now")
    found = []
    for sample_id, ours in decoded.items():
        context, true = learned[sample_id]
        if sample_id not in published or published[sample_id][0] != context:
            raise ConfigError(
                f"--converted {converted}: example {sample_id!r} of {task.name} is not in the distil file, or another "
                f"one there. {run.path} must have learned the references' own examples (data.converted)"
            )
        found.append(Answer(sample_id, ours, published[sample_id][1], true))
    return found


def compared(found: Sequence[Answer]) -> list[float]:
    """The columns after ``examples``, in percent: exact match of ``PAIRS``, then their mean ROUGE.

    Blanks at both ends do not count.
    """
    return [score(metric, _items(found, *pair))[metric] for metric in ("em", "avg_rouge") for pair in PAIRS]


def report(runs: Sequence[Run], converted: Path) -> str:
    """A Markdown table with a row for each run and task. Raises as ``answers`` does."""
    return table(HEADER, list(_rows(runs, converted)))


def _items(found: Sequence[Answer], said: str, reference: str) -> list[Item]:
    return [Item(getattr(one, said), (getattr(one, reference),), one.sample_id) for one in found]


def _rows(runs: Sequence[Run], converted: Path) -> Iterator[list[str]]:
    for run in runs:
        for task in run.experiment.stream:
            found = answers(run, task, converted)
            values = [number(value) for value in compared(found)]
            yield [f"{run.variant}, seed {run.seed}", task.name, str(len(found)), *values]


def _by_id(examples: pa.Table) -> dict[str, tuple[str, str]]:
    """Sample id -> context and answer."""
    columns = (examples[name].to_pylist() for name in ("sample_id", "context", "answer"))
    return {sample_id: (context, answer) for sample_id, context, answer in zip(*columns, strict=True)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; gives the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.distil_check", description="Set our teachers' answers beside the published ones."
    )
    parser.add_argument("run_dirs", metavar="RUN_DIR", nargs="+", type=Path, help="folder of a finished run")
    parser.add_argument(
        "--converted", metavar="FOLDER", required=True, type=Path, help="folder of the references' distil files"
    )
    options = parser.parse_args(arguments)
    return exit_status(lambda: print(report([read_run(folder) for folder in options.run_dirs], options.converted)))


if __name__ == "__main__":
    sys.exit(main())
