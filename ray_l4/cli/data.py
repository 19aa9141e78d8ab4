"""``data list``, ``data show`` and ``data prepare``: the tasks and their examples."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ray_l4.cli.options import RawOption
from ray_l4.errors import ConfigError, DataError, nearest

if TYPE_CHECKING:
    from ray_l4.config.experiment import DataConfig
    from ray_l4.config.stream import Columns

app = typer.Typer(help="List the tasks, show their examples, or write them as Parquet.", no_args_is_help=True)

PathOption = Annotated[Path | None, typer.Option("--path", help="Folder of your own data (train.* and test.*).")]
DatasetOption = Annotated[
    str | None, typer.Option("--dataset", metavar="OWNER/NAME", help="A data set of the hub as your own data.")
]
ColumnOption = Annotated[
    list[str] | None,
    typer.Option(
        "--column",
        metavar="FIELD=COLUMN",
        help="Column of your own data for context, question, answer or id; of chat data for messages, prompt or "
        "completion.",
    ),
]
QuestionOption = Annotated[
    str | None, typer.Option("--question", help="The question of every example, if your own data has none.")
]
DownloadOption = Annotated[bool, typer.Option("--download", help="Download missing raw files first.")]
MirrorOption = Annotated[
    str | None,
    typer.Option(
        "--mirror", envvar="RAY_L4_MIRROR", help="Server to download from instead of raw.githubusercontent.com."
    ),
]


_ANY_METRIC = "em"
"""Metric for the user's own task, which has to name one although ``data show`` scores nothing."""


@app.command("list")
def list_() -> None:
    """Print the built-in tasks, and the metrics that your own tasks may use."""
    from rich.console import Console
    from rich.table import Table

    from ray_l4.metrics.registry import METRICS
    from ray_l4.tasks.registry import TASKS

    console = Console()
    table = Table("task", "metric", "train", "test", "description", title="tasks (numbers of examples in the papers)")
    for task in TASKS.values():
        table.add_row(task.name, task.metric, f"{task.train:,}", f"{task.test:,}", task.description)
    console.print(table)
    table = Table("metric", "description", title="metrics")
    for metric in METRICS.values():
        table.add_row(metric.name, metric.description)
    console.print(table)


@app.command()
def show(
    task: Annotated[str, typer.Argument(metavar="TASK", help="Name of a task; of your own task with --path.")],
    raw: RawOption = None,
    path: PathOption = None,
    dataset: DatasetOption = None,
    column: ColumnOption = None,
    question: QuestionOption = None,
    n: Annotated[int, typer.Option("-n", min=0, help="Number of examples to print from each split.")] = 2,
) -> None:
    """Print the number of examples, the average lengths and the first examples of a task."""
    from ray_l4.config.loading import data_config
    from ray_l4.config.stream import TaskConfig
    from ray_l4.tasks.prepare import summary

    columns = parse_columns(column or [])
    metric = None if path is None and dataset is None else _ANY_METRIC
    wanted = TaskConfig(name=task, path=path, dataset=dataset, metric=metric, columns=columns, question=question)
    for split in summary(wanted, data_config(raw), n).splits:
        typer.echo(
            f"{task}, {split.split}: {split.examples:,} examples; words on average: context {split.context_words:.1f}, "
            f"question {split.question_words:.1f}, answer {split.answer_words:.1f}; {split.references:.1f} references"
        )
        for example in split.first:
            typer.echo("  " + json.dumps(example, ensure_ascii=False))


@app.command()
def prepare(
    raw: RawOption = None,
    out: Annotated[Path, typer.Option("--out", help="Folder in which to write TASK/SPLIT.parquet.")] = Path("prepared"),
    tasks: Annotated[
        list[str] | None,
        typer.Option("--task", help="Task to write; all tasks with raw files if not given. Repeatable."),
    ] = None,
    download: DownloadOption = False,
    mirror: MirrorOption = None,
) -> None:
    """Write tasks as Parquet files, which can be read back as your own data."""
    from rich.console import Console

    from ray_l4.cli.download import download_tasks, raw_folder
    from ray_l4.config.experiment import DataConfig
    from ray_l4.config.loading import data_config
    from ray_l4.config.stream import TaskConfig
    from ray_l4.report.out_file import check_folder
    from ray_l4.tasks.prepare import prepare as write_tasks
    from ray_l4.tasks.registry import TASKS

    check_folder(out, "--out")
    failed = download_tasks(tasks or list(TASKS), raw_folder(raw), mirror, stop=tasks is not None) if download else []
    data = DataConfig(raw=raw_folder(raw)) if download else data_config(raw)
    written: list[Path] = []
    with Console(stderr=True).status("reading") as status:
        for name in tasks or TASKS:
            status.update(f"writing {name}")
            try:
                written += write_tasks([TaskConfig(name=name)], data, out)
            except DataError as error:
                if tasks:
                    raise
                typer.echo(f"skipped {name}: {error}", err=True)
    for path in written:
        typer.echo(str(path))
    if failed:
        raise DataError("\n".join(["not everything could be downloaded:", *failed]))
    if not written:
        raise DataError(f"nothing was written: found no raw data of any task ({_searched(data)})")


def parse_columns(pairs: Sequence[str]) -> Columns:
    """Parse ``FIELD=COLUMN`` pairs. Raises ConfigError if one is malformed or names an unknown field."""
    from ray_l4.config.stream import Columns

    chosen: dict[str, str] = {}
    for pair in pairs:
        name, equals, column = pair.partition("=")
        if not equals or not column:
            raise ConfigError(f"--column {pair}: expected FIELD=COLUMN, for instance context=country.")
        if name not in Columns.model_fields:
            raise ConfigError(f"--column {pair}: unknown field {name!r}. {nearest(name, Columns.model_fields)}")
        chosen[name] = column
    return Columns(**chosen)


def _searched(data: DataConfig) -> str:
    return f"looked in {data.raw}" if data.raw else "give --raw DIR, or set RAY_L4_DATA to the folder that holds raw/"
