"""The table of built-in tasks, and one function that loads the examples of any task."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ray_l4.config.experiment import DataConfig
from ray_l4.config.stream import TaskConfig
from ray_l4.errors import ConfigError, nearest
from ray_l4.metrics.registry import METRICS, Item
from ray_l4.tasks import cnndm, e2e, embedded, rnnlg, squad, textclass, wikisql, woz
from ray_l4.tasks.files import MissingFileError
from ray_l4.tasks.own_files import find_split
from ray_l4.tasks.rows import BadRecords, Split
from ray_l4.tasks.source import Source

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger(__name__)

DIALOGUE_METRIC = "joint_goal_em"
"""The metric that accumulates over a dialogue; subsets of its tasks keep dialogues together."""


@dataclass(frozen=True)
class TaskInfo:
    """A built-in task."""

    name: str
    family: str
    """Key of ``READERS``: the reader of its raw files."""
    metric: str
    train: int
    """Number of training examples in the papers (REFERENCE.md#data-schema)."""
    test: int
    """Number of test examples in the papers."""
    description: str

    def paper_size(self, split: Split) -> int | None:
        """Return the papers' size of a split; None for the dev split, which they do not use."""
        return {"train": self.train, "test": self.test}.get(split)


Reader = Callable[[Source, BadRecords], Iterable[Mapping[str, object]]]
"""Function that reads the rows of one split and counts unusable records."""

READERS: dict[str, Reader] = {
    "woz": woz.read,
    "wikisql": wikisql.read,
    "e2e": e2e.read,
    "rnnlg": rnnlg.read,
    "cnndm": cnndm.read,
    "textclass": textclass.read,
    "embedded": embedded.read,
}

SPLITS_OF_A_RUN: tuple[Split, ...] = ("train", "test")

_MINI = (embedded.TRAIN, embedded.TEST)

TASKS: dict[str, TaskInfo] = {
    info.name: info
    for info in (
        TaskInfo(
            "mini.woz",
            "embedded",
            "joint_goal_em",
            *_MINI,
            "Generated: a user turn to the change of the dialogue state",
        ),
        TaskInfo("mini.sql", "embedded", "lfem", *_MINI, "Generated: a question about a table to a query"),
        TaskInfo(
            "mini.rest", "embedded", "avg_rouge", *_MINI, "Generated: a dialogue act about a restaurant to a sentence"
        ),
        TaskInfo(
            "woz.en",
            "woz",
            "joint_goal_em",
            2536,
            1646,
            "WOZ 2.0, English: a user turn to the change of the dialogue state",
        ),
        TaskInfo("wikisql", "wikisql", "lfem", 6525, 15878, "WikiSQL: a question about a table to a query"),
        TaskInfo("e2enlg", "e2e", "avg_rouge", 6000, 2000, "E2E NLG: a meaning representation to a sentence"),
        TaskInfo(
            "rnnlg.rest", "rnnlg", "avg_rouge", 6228, 1039, "RNNLG: a dialogue act about a restaurant to a sentence"
        ),
        TaskInfo("rnnlg.hotel", "rnnlg", "avg_rouge", 6446, 1075, "RNNLG: a dialogue act about a hotel to a sentence"),
        TaskInfo(
            "rnnlg.tv", "rnnlg", "avg_rouge", 8442, 1407, "RNNLG: a dialogue act about a television to a sentence"
        ),
        TaskInfo(
            "rnnlg.laptop", "rnnlg", "avg_rouge", 7944, 2649, "RNNLG: a dialogue act about a laptop to a sentence"
        ),
        TaskInfo("cnn_dailymail", "cnndm", "avg_rouge", 6604, 2250, "CNN/DailyMail: an article to its summary"),
        TaskInfo("ag", "textclass", "em", 115000, 7600, "AG News: a text to its topic"),
        TaskInfo("yelp", "textclass", "em", 115000, 7600, "Yelp: a review to its sentiment"),
        TaskInfo("amazon", "textclass", "em", 115000, 7600, "Amazon: a review to its sentiment"),
        TaskInfo("dbpedia", "textclass", "em", 115000, 7600, "DBpedia: an article to its class"),
        TaskInfo("yahoo", "textclass", "em", 115000, 7600, "Yahoo Answers: a question to its topic"),
    )
}


def metric_of(task: TaskConfig) -> str:
    """Return the name of the task's metric: the configured one, else that of the built-in task.

    Raises:
        ConfigError: the metric or the task is unknown, or a custom task has no metric.
    """
    _check_known(task)
    if task.metric is not None and task.metric not in METRICS:
        raise ConfigError(f"Task {task.name!r}: unknown metric {task.metric!r}. {nearest(task.metric, METRICS)}")
    if task.metric is not None:
        return task.metric
    if task.name in TASKS:
        return TASKS[task.name].metric
    raise ConfigError(f"Task {task.name!r} is your own data; set its metric to one of {', '.join(sorted(METRICS))}.")


def load(task: TaskConfig, split: Split, data: DataConfig) -> pa.Table:
    """Return the examples of one split (an ``EXAMPLES`` table), as many as the task asks for, in file order.

    Raises:
        ConfigError: the task is unknown, or the folder of its data is not set.
        DataError: the data is missing, unreadable or too damaged, or has fewer examples than requested.
    """
    # Imported here, because commands that only need the table of tasks have to start fast.
    from ray_l4.tasks.sampling import count_of, subset
    from ray_l4.tasks.schema import build_table

    _check_known(task)
    metric = metric_of(task)
    by_dialogue = metric == DIALOGUE_METRIC
    source = Source(task, split, data)
    bad = BadRecords(str(source), data.max_bad_fraction)
    table = build_table(task.name, _reader(task, data)(source, bad), bad)
    if task.is_own and split == "test":
        _check_meta(metric, table)
    info = TASKS.get(task.name)
    count = count_of(source.wanted, info.paper_size(split) if info else None, table.num_rows, str(source))
    if by_dialogue and split == "test" and not any("_" in name for name in table.column("sample_id").to_pylist()):
        log.warning(
            "%s: no sample id has the form <dialogue>_<turn>; every example counts as its own dialogue.", source
        )
    return subset(table, count, data.seed, task.name, split, by_dialogue)


def _check_meta(metric: str, examples: pa.Table) -> None:
    """Raise DataError now, and not after training, if the user's own examples lack what the metric needs of them."""
    from ray_l4.tasks.slices import slices_of

    if (check := METRICS[metric].check_meta) is not None:
        for part in slices_of(examples.select(["sample_id", "meta"])):
            for row in part.to_pylist():
                check(Item("", (), row["sample_id"], row["meta"]))


def check_files(task: TaskConfig, data: DataConfig, splits: Sequence[Split] = SPLITS_OF_A_RUN) -> None:
    """Check that the files of ``splits`` are there, as far as that can be told without reading them.

    Raises:
        ConfigError, DataError: as ``load``.
    """
    own = task.path is not None and not squad.is_squad_folder(task.path)
    if task.dataset is not None:
        return  # the hub has them
    for split in splits:
        source = Source(task, split, data)
        if own:
            find_split(source)
        elif task.path is not None or squad.is_converted(data.converted, task.name):
            squad.find_file(source)
        elif READERS[TASKS[task.name].family] is embedded.read:
            embedded.check_count(source)
        elif not source.raw.is_dir():
            raise MissingFileError(f"Task {task.name!r}: no folder {source.raw} (data.raw), from which it is read.")


def _check_known(task: TaskConfig) -> None:
    if task.name not in TASKS and not task.is_own:
        raise ConfigError(
            f"Unknown task {task.name!r}. {nearest(task.name, TASKS)} For your own data, give the task a path."
        )


def _reader(task: TaskConfig, data: DataConfig) -> Reader:
    if task.is_own and not (task.path and squad.is_squad_folder(task.path)):
        from ray_l4.tasks import custom  # loads PyArrow

        return custom.read
    if task.path is not None:
        return squad.read
    if squad.is_converted(data.converted, task.name):
        return squad.read
    return READERS[TASKS[task.name].family]
