"""The answers that our teachers decoded for Seq-KD, compared with those of the reference implementation.

::

    python -m analysis.distil_check RUN_DIR... --converted FOLDER

RUN_DIR is a finished run of a method whose teachers answer (``l2kd-seq``, ``l2kd-seq-soft``, ``multi-seq-kd``) that
learned the examples of the reference implementation (``data.converted``). FOLDER holds
``<task>_to_squad-distil-v2.0.json``: the same examples with the answers of its teachers. All figures are over the
examples that our teachers answered.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from analysis.command import exit_status
from ray_l4.config.experiment import DataConfig
from ray_l4.config.stream import TaskConfig
from ray_l4.errors import ConfigError, RunDirectoryError
from ray_l4.metrics.registry import Item, score
from ray_l4.report.finished_run import FinishedRun
from ray_l4.report.markdown import number, table
from ray_l4.tasks.registry import load
from ray_l4.tasks.squad import is_converted

PAIRS = (("ours", "true"), ("published", "true"), ("ours", "published"))
"""Fields of an answer: what is scored, and what it is compared with."""
HEADER = (
    *("run", "task", "examples"),
    *(f"{scored} = {reference}" for scored, reference in PAIRS),
    *(f"ROUGE {scored}, {reference}" for scored, reference in PAIRS),
)


@dataclass(frozen=True)
class Answer:
    """Three answers to one training example: of our teacher, of the published one, and of the data."""

    sample_id: str
    ours: str
    published: str
    true: str


def answers(run: FinishedRun, task: TaskConfig, converted: Path) -> list[Answer]:
    """Return the answers to all examples of a task that the run's teacher answered.

    Raises:
        ConfigError: there are no published answers to this task, or they are to other examples than the run learned.
        RunDirectoryError: the run has no answers to the task, or has answers to examples that it did not learn.
    """
    path, decoded = run.directory.answers(task.name), run.teacher_answers(task.name)
    if decoded is None:
        raise RunDirectoryError(
            f"{path}: no such file: no teacher of this run answered {task.name}. Give runs of l2kd-seq, l2kd-seq-soft "
            "or multi-seq-kd."
        )
    if not is_converted(converted, task.name):
        raise ConfigError(f"--converted {converted}: the folder holds no converted files of {task.name}")
    everything = task.model_copy(update={"path": None, "train": "all"})
    published = _by_id(load(everything, "train", DataConfig(converted=converted, distil=True)))
    learned = _by_id(load(task, "train", run.experiment.data.model_copy(update={"distil": False})))
    ours_by_id = dict(zip(*(decoded[name].to_pylist() for name in ("sample_id", "answer")), strict=True))
    if unknown := ours_by_id.keys() - learned.keys():
        raise RunDirectoryError(f"{path}: answers example {min(unknown)!r}, which the run's data no longer contains")
    found = []
    for sample_id, ours in ours_by_id.items():
        context, true = learned[sample_id]
        if sample_id not in published or published[sample_id][0] != context:
            raise ConfigError(
                f"--converted {converted}: the distil file does not have example {sample_id!r} of {task.name}, or has "
                f"another context for it. {run.path} must have learned the reference implementation's examples "
                "(data.converted)."
            )
        found.append(Answer(sample_id, ours, published[sample_id][1], true))
    return found


def compared(found: Sequence[Answer]) -> list[float]:
    """Return the columns after ``examples``, in percent: exact match of each of ``PAIRS``, then their mean ROUGE.

    Leading and trailing spaces are ignored.
    """
    return [score(metric, _items(found, *pair))[metric] for metric in ("em", "avg_rouge") for pair in PAIRS]


def report(runs: Sequence[FinishedRun], converted: Path) -> str:
    """Return a Markdown table with a row for each run and task. Raises as ``answers`` does."""
    return table(HEADER, list(_rows(runs, converted)))


def _items(found: Sequence[Answer], scored: str, reference: str) -> list[Item]:
    return [Item(getattr(one, scored), (getattr(one, reference),), one.sample_id) for one in found]


def _rows(runs: Sequence[FinishedRun], converted: Path) -> Iterator[list[str]]:
    for run in runs:
        for task in run.experiment.stream:
            found = answers(run, task, converted)
            values = [number(value) for value in compared(found)]
            yield [run.label, task.name, str(len(found)), *values]


def _by_id(examples: pa.Table) -> dict[str, tuple[str, str]]:
    """Return sample_id -> context and answer."""
    columns = (examples[name].to_pylist() for name in ("sample_id", "context", "answer"))
    return {sample_id: (context, answer) for sample_id, context, answer in zip(*columns, strict=True)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.distil_check", description="Compare our teachers' answers with the published ones."
    )
    parser.add_argument("run_dirs", metavar="RUN_DIR", nargs="+", type=Path, help="folder of a finished run")
    parser.add_argument(
        "--converted", metavar="FOLDER", required=True, type=Path, help="folder of the published distil files"
    )
    options = parser.parse_args(arguments)
    return exit_status(
        lambda: print(report([FinishedRun.open(folder) for folder in options.run_dirs], options.converted))
    )


if __name__ == "__main__":
    sys.exit(main())
