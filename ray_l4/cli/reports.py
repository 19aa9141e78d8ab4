"""``report``: one finished run, or several side by side; ``rescore``: their scores computed again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ray_l4.cli.model_options import DeviceOption, TrustOption, check_device
from ray_l4.cli.options import RunsArgument, split_overrides

if TYPE_CHECKING:
    from ray_l4.report.run_search import FoundRuns
    from ray_l4.run.rescoring import Change
    from ray_l4.store.run_directory import RunDirectory

PAGE = "report.html"
FullOption = Annotated[bool, typer.Option("--full", help="Print the whole report of every run before the table.")]
EachOption = Annotated[
    bool, typer.Option("--each", help="Print a row for each run, not one for runs that differ only in their seed.")
]
AddedOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="What to add: evaluation.general=FILE (and evaluation.general_tokens=N), evaluation.together=true (and "
        "settings of the cluster profile, such as cluster.evaluators.gpus=1). Repeatable.",
    ),
]
PageOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help=f"HTML page to write. If not given: {PAGE} in the folder of a single run or sweep; for several runs, "
        f"{PAGE} here, or the next free name such as report-2.html.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command()(report)
    app.command()(rescore)


def report(
    runs: RunsArgument,
    full: FullOption = False,
    each: EachOption = False,
    out: PageOption = None,
) -> None:
    """Print finished runs as Markdown tables: mean and deviation over the seeds, for each order of the tasks.

    Also writes the report.md of every run, and one HTML page about all of them.
    """
    from ray_l4.errors import ConfigError, RunDirectoryError
    from ray_l4.report.run_search import find_runs

    found = find_runs(runs)
    if not found.finished:
        first = found.unfinished[0]
        raise RunDirectoryError(f"{first}: the run did not finish. Resume it: ray-l4 resume {first}")
    page = out or _default_page(runs, found)
    if page.is_dir():
        raise ConfigError(f"--out {page}: is a folder; give the name of the page to write, such as {page / PAGE}")

    from ray_l4.report.finished_run import FinishedRun
    from ray_l4.report.groups import group_table, grouped
    from ray_l4.report.html.page import render
    from ray_l4.report.markdown import run_report
    from ray_l4.report.out_file import write_out
    from ray_l4.report.paired import compare
    from ray_l4.report.paired_text import paired_markdown
    from ray_l4.store.atomic import write_text

    opened = [FinishedRun.open(folder) for folder in found.finished]
    blocks = grouped(opened)
    for note in found.notes():
        typer.echo(note, err=True)
    for run in opened:
        text = run_report(run)
        write_text(run.path / "report.md", text)
        if full:
            typer.echo(text)
    for block in blocks:
        title = f"{block.title}:\n\n" if len(blocks) > 1 else ""
        typer.echo(f"{title}{group_table(block, each=each)}\n")
    against = found.against if len(runs) == 1 else None  # other runs may differ in more than variant, order and seed
    if against is not None:
        typer.echo(f"{paired_markdown(compare(opened, against))}\n")
    write_out(render(opened, against), page)
    typer.echo(page)


def _default_page(paths: list[Path], found: FoundRuns) -> Path:
    """Return the page in the folder of a single run or sweep; for any other list of runs, a free name here."""
    if len(paths) == 1:
        return paths[0] / PAGE
    if len(found.finished) == 1:
        return found.finished[0] / PAGE
    here = Path(PAGE)
    names = (here if number == 1 else Path(f"{here.stem}-{number}{here.suffix}") for number in count(1))
    return next(name for name in names if not name.exists())


def rescore(
    run_dirs: Annotated[list[Path], typer.Argument(metavar="RUN_DIR...", help="Folders of finished runs.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the new scores, and write nothing.")] = False,
    set_: AddedOption = None,
    device: DeviceOption = "auto",
    trust_custom_code: TrustOption = False,
) -> None:
    """Compute the scores of finished runs again.

    They follow from the stored answers, with the metrics of this version. Prints every task's last score, old and new.
    With --set evaluation.general=FILE, also adds the perplexity on general text, from the checkpoints. With --set
    evaluation.together=true, also scores the students of each run together, from its checkpoints, as one more row
    (docs/PEERS.md); --set cluster.evaluators.gpus=1 has a GPU of this machine do that.
    """
    from ray_l4.store.run_directory import RunDirectory

    check_device(device)
    runs = [RunDirectory.open(folder) for folder in run_dirs]
    for run in runs:
        run.summary()  # refuse all before the first is changed
    general = [text for text in set_ or [] if text.startswith("evaluation.general")]
    others = [text for text in set_ or [] if text not in general]
    if general:
        from ray_l4.run.general_rescoring import general_experiment, measure_general

        experiments = [general_experiment(run, general) for run in runs]
    if others:
        _add_together(runs, others, dry_run)
        if not general:
            return

    from ray_l4.run.rescoring import rescore as rescored

    if general:
        for run, experiment in zip(runs, experiments, strict=True):
            rescored(run, write=False)  # refuse it before its models are run
            typer.echo(f"{run.path}: perplexity on general text")
            found = measure_general(run, experiment, device, write=not dry_run, trusts_code=trust_custom_code)
            for cell, value in found:
                typer.echo(f"  {cell.checkpoint}: {'not finite' if value is None else f'{value:.3f}'}")
    for run in runs:
        for folder, changes in rescored(run, write=not dry_run).items():
            for line in _lines(folder, changes):
                typer.echo(line)


def _add_together(runs: Sequence[RunDirectory], overrides: list[str], dry_run: bool) -> None:
    """Add the scores of all students together to finished runs, and print the final ones of each."""
    from ray_l4.config.loading import load_cluster, load_experiment
    from ray_l4.errors import ConfigError
    from ray_l4.report.finished_run import FinishedRun
    from ray_l4.report.markdown import number
    from ray_l4.run.together_later import add_together, missing_together, refuse_single
    from ray_l4.store.run_directory import TOGETHER

    for_experiment, for_cluster = split_overrides(overrides)
    if any(text.partition("=")[0].strip() != "evaluation.together" for text in for_experiment):
        raise ConfigError(
            f"--set {' '.join(for_experiment)}: a finished run stays as it was made; only "
            "evaluation.general=FILE, evaluation.together=true and settings of the cluster profile "
            "(cluster.evaluators.gpus=1) can be added to it"
        )
    for run in runs:
        if not load_experiment(run.path / "config.yaml", for_experiment).evaluation.together:
            raise ConfigError("--set: expected evaluation.together=true, which is what can be added to a finished run")
        refuse_single(run)
    for run in runs:
        profile = load_cluster(run.path / "cluster.yaml", for_cluster)
        if dry_run:
            rows = list(missing_together(run, typer.echo))
            typer.echo(f"{run.path}: {len(rows)} checkpoints of all students to be scored together")
            continue
        added = add_together(run, profile, typer.echo)
        typer.echo(f"{run.path}: {len(added)} scores of all students together added")
        for task, value in FinishedRun.open(run.path).final(TOGETHER).items():
            typer.echo(f"  together, {task}: {number(value, 3)}")


def _lines(folder: Path, changes: Sequence[Change]) -> Iterator[str]:
    """Yield the number of changed scores, then a line for each student and task about its last score."""
    changed = [change for change in changes if change.old != change.new]
    yield f"{folder}: {len(changes)} scores computed again, {len(changed)} changed"
    from ray_l4.store.run_directory import row_title

    last = {(change.cell.student, change.cell.task): change for change in changes}  # in order of stage and epoch
    for (student, task), change in last.items():
        old, new = change.old, change.new
        after = f"{'' if new.metric == old.metric else f'{new.metric} '}{new.value:.3f}"
        outcome = "(unchanged)" if old == new else f"-> {after}"
        yield f"  {row_title(student)}, {task}: {old.metric} {old.value:.3f} {outcome}"
