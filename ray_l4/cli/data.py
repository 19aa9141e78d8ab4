"""``data list``, ``data show`` and ``data prepare``: the tasks and what is in them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from ray_l4.cli.download import progress, raw_folder
from ray_l4.config.experiment import Columns, DataConfig, TaskConfig
from ray_l4.config.loading import data_config
from ray_l4.errors import ConfigError, DataError, nearest
from ray_l4.metrics.registry import METRICS
from ray_l4.tasks.download import download as fetch_raw
from ray_l4.tasks.download.upstream import ORIGIN
from ray_l4.tasks.prepare import prepare as write_tasks
from ray_l4.tasks.prepare import summary
from ray_l4.tasks.registry import TASKS

app = typer.Typer(help="The tasks: what there is, what is in it, and written out as Parquet.", no_args_is_help=True)

RawOption = Annotated[
    Path | None, typer.Option("--raw", help="Folder of the raw data sets; RAY_L4_DATA/raw when not given.")
]
PathOption = Annotated[Path | None, typer.Option("--path", help="Folder of your own data (train.* and test.*).")]
ColumnOption = Annotated[
    list[str] | None,
    typer.Option("--column", metavar="FIELD=COLUMN", help="Column of your own data for context, question, answer, id."),
]
QuestionOption = Annotated[str | None, typer.Option("--question", help="One question for all of your own data.")]
DownloadOption = Annotated[bool, typer.Option("--download", help="First fetch the raw files that are missing.")]
MirrorOption = Annotated[
    str, typer.Option("--mirror", envvar="RAY_L4_MIRROR", help="Server to download from, in place of the usual one.")
]


@app.command("list")
def list_() -> None:
    """Print the built-in tasks and the metrics one's own tasks may use."""
    console = Console()
    table = Table("task", "metric", "train", "test", "what it is", title="tasks (sizes: as in the papers)")
    for task in TASKS.values():
        table.add_row(task.name, task.metric, f"{task.train:,}", f"{task.test:,}", task.description)
    console.print(table)
    table = Table("metric", "what it is", title="metrics")
    for metric in METRICS.values():
        table.add_row(metric.name, metric.description)
    console.print(table)


@app.command()
def show(
    task: Annotated[str, typer.Argument(metavar="TASK", help="Name of a task, or of your own with --path.")],
    raw: RawOption = None,
    path: PathOption = None,
    column: ColumnOption = None,
    question: QuestionOption = None,
    n: Annotated[int, typer.Option("-n", min=0, help="Examples to print of each split.")] = 2,
) -> None:
    """Print sizes, lengths and the first examples of a task."""
    columns = _columns(column or [])
    wanted = TaskConfig(name=task, path=path, metric=_any_metric(path), columns=columns, question=question)
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
    out: Annotated[Path, typer.Option("--out", help="Folder to write TASK/SPLIT.parquet into.")] = Path("prepared"),
    tasks: Annotated[list[str] | None, typer.Option("--task", help="Only this task; may be given again.")] = None,
    download: DownloadOption = False,
    mirror: MirrorOption = ORIGIN,
) -> None:
    """Write tasks as Parquet, which can be read back as one's own data. All whose raw files are there, unless told."""
    incomplete = _fetch(tasks or list(TASKS), raw_folder(raw), mirror, stop=tasks is not None) if download else []
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
                typer.echo(f"left out {name}: {error}", err=True)
    for path in written:
        typer.echo(str(path))
    if incomplete:
        raise DataError("\n".join(["not everything could be downloaded:", *incomplete]))
    if not written:
        raise DataError(f"nothing was written: no raw data was found for any task ({_searched(data)})")


def _fetch(tasks: Sequence[str], raw: Path, mirror: str, stop: bool) -> list[str]:
    """Download what the tasks lack; what went wrong, one line a task, unless it is to stop at the first error."""
    problems = []
    console = Console(stderr=True)
    with progress(console) as report:
        for name in tasks:
            try:
                for path in fetch_raw(name, raw, report, mirror):
                    console.print(f"downloaded {path}", highlight=False, soft_wrap=True)
            except DataError as error:
                if stop:
                    raise
                problems.append(f"{name}: {error}")
    return problems


def _columns(pairs: Sequence[str]) -> Columns:
    """``FIELD=COLUMN`` pairs as the columns of one's own data."""
    chosen: dict[str, str] = {}
    for pair in pairs:
        name, equals, column = pair.partition("=")
        if not equals or not column:
            raise ConfigError(f"--column {pair}: expected FIELD=COLUMN, for instance context=country.")
        if name not in Columns.model_fields:
            raise ConfigError(f"--column {pair}: unknown field {name!r}. {nearest(name, Columns.model_fields)}")
        chosen[name] = column
    return Columns(**chosen)


def _any_metric(path: Path | None) -> str | None:
    """Showing one's own data scores nothing, but a task of one's own has to name a metric."""
    return None if path is None else "em"


def _searched(data: DataConfig) -> str:
    return f"looked in {data.raw}" if data.raw else "give --raw DIR, or set RAY_L4_DATA to the folder that holds raw/"
