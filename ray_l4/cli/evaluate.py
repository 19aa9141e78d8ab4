"""``evaluate``: score checkpoints, all students of a run, or untouched models, in this process and without Ray."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ray_l4.cli.data import ColumnOption, parse_columns
from ray_l4.cli.model_options import (
    MODEL_HELP,
    DeviceOption,
    EpochOption,
    ExperimentOption,
    SeedOption,
    SettingOption,
    StageOption,
    StudentOption,
    TrustOption,
    check_device,
    given,
    sections,
)
from ray_l4.cli.options import OutputOption, RawOption
from ray_l4.cli.scores import Record, json_lines, record_of, show_answers, table_of
from ray_l4.errors import ConfigError

if TYPE_CHECKING:
    from ray_l4.config.stream import TaskConfig
    from ray_l4.setup.inspected import Inspected, Settings
    from ray_l4.setup.loaded import TaskScore

    Work = Sequence[tuple[Inspected, Sequence[TaskConfig]]]
    """Models, each with the tasks to score it on."""

ModelsArgument = Annotated[list[str] | None, typer.Argument(metavar="MODEL...", help=MODEL_HELP)]
TasksOption = Annotated[
    list[str] | None, typer.Option("--task", help="Task to score; all of the run's if not given. Repeatable.")
]
PathOption = Annotated[Path | None, typer.Option("--path", help="Folder of your own data for the task.")]
QuestionOption = Annotated[str | None, typer.Option(help="The question of every example of the task.")]
MetricOption = Annotated[str | None, typer.Option(help="Metric of the task.")]
LimitOption = Annotated[int | None, typer.Option(min=1, help="Score at most this many examples of a task.")]
TopKOption = Annotated[
    int | None, typer.Option(min=1, help="1 decodes greedily; 20 samples as the reference implementations do.")
]
MaxLengthOption = Annotated[int | None, typer.Option(min=2, help="Longest sequence of prompt and answer, in tokens.")]
ShowOption = Annotated[int, typer.Option(min=0, help="Print this many answers to each task, with what was asked.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object per score instead of a table.")]

_OUTPUT = "--output"
_ONE_TASK = "--path, --column, --question and --metric describe one task: name it with --task"


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command()(evaluate)


def evaluate(
    models: ModelsArgument = None,
    task: TasksOption = None,
    student: StudentOption = None,
    stage: StageOption = None,
    epoch: EpochOption = None,
    experiment: ExperimentOption = None,
    set_: SettingOption = None,
    raw: RawOption = None,
    path: PathOption = None,
    column: ColumnOption = None,
    question: QuestionOption = None,
    metric: MetricOption = None,
    limit: LimitOption = None,
    top_k: TopKOption = None,
    max_length: MaxLengthOption = None,
    seed: SeedOption = None,
    show: ShowOption = 0,
    trust_custom_code: TrustOption = False,
    device: DeviceOption = "auto",
    json_: JsonOption = False,
    output: OutputOption = None,
) -> None:
    """Score models on test sets; a run's checkpoint with the settings and on the test sets of its run.

    Prints a table, or one JSON object for a single score. Writes nothing into a run directory.

    A model without task tokens gets them as in a run; --experiment makes it the very model with which a run begins.
    """
    from ray_l4.report.out_file import check_file
    from ray_l4.setup.inspected import Settings, inspected
    from ray_l4.store.checkpoints import Wanted

    check_device(device)
    if output is not None:
        check_file(output, _OUTPUT)
    settings = Settings(
        wanted=Wanted(stage, epoch, student),
        tasks=task or (),
        task=given(path=path, question=question, metric=metric, columns=parse_columns(column) if column else None),
        experiment=experiment,
        overrides=set_ or (),
        sections=sections(
            evaluation=given(limit=limit, top_k=top_k), model=given(max_length=max_length), data=given(raw=raw)
        ),
        seed=seed,
        trusts_code=trust_custom_code,
    )
    if settings.task and len(settings.tasks) != 1:
        raise ConfigError(_ONE_TASK)
    named: list[str | None] = [*models] if models else [None]
    found = [each for model in named for each in inspected(model, settings)]
    work = [(each, _tasks(each, settings)) for each in found]
    results = _results(work, device, show, output)
    single = sum(len(records) for _, records in results) == 1
    typer.echo(json_lines(results) if json_ or single else table_of(results), nl=not json_ and not single)


def _results(work: Work, device: str, show: int, output: Path | None) -> list[tuple[str, list[Record]]]:
    """Return every model's scores. After each, write those so far to ``output`` and print ``show`` answers."""
    from ray_l4.report.out_file import write_out

    results: list[tuple[str, list[Record]]] = []
    for found, scores in _scored(work, device):
        records: list[Record] = []
        results.append((found.name, records))
        for score in scores:
            show_answers(found, score, show)
            records.append(record_of(found, score))
            if output is not None:
                write_out(json_lines(results), output, _OUTPUT)
    return results


def _tasks(found: Inspected, settings: Settings) -> list[TaskConfig]:
    """Return the tasks to score a model on. Raises ConfigError if one is unknown or has no metric."""
    from ray_l4.tasks.registry import metric_of

    names = settings.tasks or (() if found.assumed else found.tasks)
    if not names:
        known = f" It knows {', '.join(found.tasks)}." if found.tasks else ""
        raise ConfigError(
            f"{found.name}: name a task (--task), or give --experiment with a stream of tasks.{known}{found.hub_note}"
        )
    tasks = [found.task(name, settings) for name in dict.fromkeys(names)]
    for task in tasks:
        metric_of(task)
    return tasks


def _scored(work: Work, device: str) -> Iterator[tuple[Inspected, Iterator[TaskScore]]]:
    """Yield every model with its scores, which are computed as they are asked for."""
    from rich.console import Console

    from ray_l4.setup.loaded import load_inspected, longest_sequence, read_examples, score_tasks

    console = Console(stderr=True, highlight=False)
    read: tuple[Sequence[TaskConfig], object] | None = None
    for number, (found, tasks) in enumerate(work, start=1):
        with console.status(f"{found.name} ({number} of {len(work)})"):
            if read != (tasks, found.experiment.data):  # before the model: what is missing is reported at once
                examples, read = read_examples(tasks, found), (tasks, found.experiment.data)
            loaded = load_inspected(found, device)
            if found.assumed:
                console.print(f"note: {_assumed(found, longest_sequence(found, loaded))}", soft_wrap=True)
            yield found, score_tasks(found, loaded, tasks, examples)


def _assumed(found: Inspected, longest: int) -> str:
    """Say which settings are defaults, for a model that belongs to no run."""
    evaluation = found.experiment.evaluation
    return (
        f"{found.name}: belongs to no run, so defaults are assumed where no option says otherwise: at most {longest} "
        f"tokens, top_k {evaluation.top_k}, reserve {evaluation.reserve}. Give --experiment (such as the run's "
        "config.yaml) for the settings of a run."
    )
