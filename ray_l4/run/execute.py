"""Executes a run for the command line: prepare, start, watch, report."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from rich.console import Console

from ray_l4.cluster.connection import Connection
from ray_l4.cluster.placement import describe_request
from ray_l4.config.cluster import ClusterConfig
from ray_l4.config.experiment import ExperimentConfig
from ray_l4.config.loading import dump_yaml
from ray_l4.config.stream import TaskConfig
from ray_l4.config.text import counted
from ray_l4.errors import RunDirectoryError
from ray_l4.methods import get_method
from ray_l4.monitor.live_view import watch
from ray_l4.report.finished_run import FinishedRun
from ray_l4.report.fusion import fusion_table
from ray_l4.report.markdown import comparison, run_report
from ray_l4.report.run_files import read_replay
from ray_l4.run.command_log import CommandLog
from ray_l4.run.preparation import (
    are_to_come,
    data_entries,
    extensions,
    keep_examples,
    lacks_tokens,
    manifest_of,
    prepare_again,
    prepare_run,
)
from ray_l4.run.session import Session, open_session
from ray_l4.setup.peer_teachers import taught_stage
from ray_l4.setup.setup import Setup
from ray_l4.store.atomic import write_folder, write_text
from ray_l4.store.extension import finish_extension, record_extension, was_cut_off
from ray_l4.store.mirror import MIRROR_NAME_KEY, Mirror, mirror_of
from ray_l4.store.run_directory import RunDirectory
from ray_l4.store.storage import absolute_address

_COMMAND_LOG = "command"
"""Name of the log of what the command printed, beside those of the project's loggers."""


def run(
    experiment: ExperimentConfig,
    cluster: ClusterConfig,
    folder: Path,
    command: str,
    console: Console,
    extra: Mapping[str, object] = {},
) -> None:
    """Run ``experiment`` in the new run directory ``folder``.

    ``extra``: entries for its manifest, in addition to the usual ones. Raises a RayL4Error if the run cannot start or
    fails.
    """
    manifest = {MIRROR_NAME_KEY: folder.resolve().name, **extra}
    cluster = _with_absolute_storage(cluster)
    with CommandLog(console, command) as log, ExitStack() as held:
        if cluster.storage_path is not None:
            with console.status("checking storage_path"):
                Mirror(cluster.storage_path, str(manifest[MIRROR_NAME_KEY])).check(folder, new=True)
        with console.status("reading and tokenising data"):
            ready = prepare_run(experiment, cluster, held)
        setup, connection = ready.setup, ready.connection
        directory = RunDirectory.create(folder, setup.experiment, cluster, {**manifest, **manifest_of(command, setup)})
        with directory.lock():
            with _resumable(directory, log):
                log.keep_in(directory.log(_COMMAND_LOG))
                keep_examples(directory, ready)
                session = _session(setup, cluster, directory, connection, log)
            _go(session, cluster, directory, log)


def resume(directory: RunDirectory, cluster: ClusterConfig, console: Console) -> None:
    """Resume a run.

    Raises RunDirectoryError if its experiment or its data has changed, or if its copy belongs to another run.
    """
    cluster = _with_absolute_storage(cluster)
    with CommandLog(console, f"ray-l4 resume {directory.path}") as log, directory.lock(), ExitStack() as held:
        with _resumable(directory, log):
            log.keep_in(directory.log(_COMMAND_LOG))
            finish_extension(directory)
            _check_mirror(directory, cluster, console)
            with console.status("reading and tokenising data"):
                ready = prepare_again(directory, cluster, held, log.say)
            write_text(directory.path / "cluster.yaml", dump_yaml(cluster))
            keep_examples(directory, ready)
            session = _session(ready.setup, cluster, directory, ready.connection, log)
        _go(session, cluster, directory, log)


def extend(
    directory: RunDirectory, items: Sequence[TaskConfig], cluster: ClusterConfig, command: str, console: Console
) -> None:
    """Append ``items`` to the stream of a run, and learn what is left of it.

    Raises ConfigError if the method of the run cannot learn further tasks, and errors as ``resume``.
    """
    with directory.lock():
        finish_extension(directory)  # first, so that items which a cut-off extension recorded are not added again
    if are_to_come(directory, items):
        console.print("the run has these stages already, and has not learned them: it goes on with them")
        resume(directory, cluster, console)
        return
    if not directory.has_finished() and lacks_tokens(directory, items):
        console.print("no task token is spare for the new tasks: the run is finished first, then its models grow")
        resume(directory, cluster, console)
    cluster = _with_absolute_storage(cluster)
    with CommandLog(console, command) as log, directory.lock(), ExitStack() as held:
        with _stoppable(command, log):
            log.keep_in(directory.log(_COMMAND_LOG))
            _check_mirror(directory, cluster, console)
            with console.status("reading and tokenising data"):
                ready = prepare_again(directory, cluster, held, log.say, items)
            write_text(directory.path / "cluster.yaml", dump_yaml(cluster))
            keep_examples(directory, ready)
            entries = data_entries(ready.setup) | extensions(directory, command, ready.setup.items[-len(items) :])
            record_extension(directory, ready.setup.experiment, entries)
        with _resumable(directory, log):
            session = _session(ready.setup, cluster, directory, ready.connection, log)
        _go(session, cluster, directory, log)


def extension_plan(directory: RunDirectory, items: Sequence[TaskConfig], cluster: ClusterConfig) -> str:
    """Return what ``extend`` would do as text. Raises errors as ``extend``, and writes nothing."""
    if was_cut_off(directory):
        raise RunDirectoryError(
            f"{directory.path}: the command that last extended this run was killed while it recorded the new tasks. "
            f"Finish that first: ray-l4 resume {shlex.quote(str(directory.path))}"
        )
    warnings: list[str] = []
    setup = prepare_again(directory, cluster, None, warnings.append, items).setup
    first = len(setup.stages) - len(items)
    done = directory.state().stages_done
    lines = [f"{directory.path}: {done} of {first} stages done; {counted(len(items), 'stage')} to be added"]
    for stage in range(first, len(setup.stages)):
        own = setup.experiment.at_stage(stage)
        lines.append(
            f"stage {stage}: {setup.stages[stage].name}, {counted(setup.num_examples(stage), 'training example')}, "
            f"{counted(own.training.epochs, 'epoch')}; replays {', '.join(setup.earlier_tasks(stage)) or 'nothing'}"
        )
    if lacks_tokens(directory, items):
        lines.append("no task token is spare for all new tasks: the models' vocabulary grows")
    return "\n".join([*lines, *warnings])


def fusion_plan(peers: RunDirectory, experiment: ExperimentConfig, cluster: ClusterConfig) -> str:
    """Return what a run of ``experiment`` would do with the students of ``peers``, as text. Writes nothing.

    Raises errors as ``run``.
    """
    setup = prepare_run(experiment, cluster, None).setup
    replay = read_replay(peers, taught_stage(experiment), ["valid"])
    replayed = 0 if replay is None else sum(replay["valid"].to_pylist())
    distillation, epochs = experiment.distillation, experiment.epochs_of(0)
    return "\n".join(
        [
            f"{peers.path}: students {', '.join(map(str, experiment.teachers.students))} teach one, which begins with "
            f"the weights of student {experiment.teachers.students[0]}",
            f"examples: {setup.num_examples(0)} of {setup.items[-1]}, and {replayed} that were replayed with them; "
            f"{counted(epochs, 'epoch')}",
            f"distillation: weight {distillation.weight:g}, temperature {distillation.temperature:g}, of "
            f"{distillation.examples} examples",
            f"scored on {', '.join(setup.tasks)}",
            f"placement: {describe_request(setup.topology.size, cluster)}",
        ]
    )


def _with_absolute_storage(cluster: ClusterConfig) -> ClusterConfig:
    """Return the profile with an absolute ``storage_path``: it is used by processes with other working directories."""
    if cluster.storage_path is None:
        return cluster
    return cluster.model_copy(update={"storage_path": absolute_address(cluster.storage_path)})


def _session(
    setup: Setup, cluster: ClusterConfig, directory: RunDirectory, connection: Connection | None, log: CommandLog
) -> Session:
    write_folder(directory.path / "tokenizer", setup.tokenizer.save)
    log.say(f"run directory: {directory.path}")
    return open_session(setup, cluster, directory, connection)


def _go(session: Session, cluster: ClusterConfig, directory: RunDirectory, log: CommandLog) -> None:
    try:
        with _resumable(directory, log):
            with log.console.status("starting"):
                session.begin()
            watch(session, log.console, log.say)
            finished = FinishedRun(session.result(), directory)
    finally:
        session.close()
    _conclude(finished, cluster, log)


def _resumable(directory: RunDirectory, log: CommandLog) -> AbstractContextManager[None]:
    """Return a context within which a command that is stopped says how to resume the run."""
    return _stoppable(f"ray-l4 resume {shlex.quote(str(directory.path))}", log)


@contextmanager
def _stoppable(again: str, log: CommandLog) -> Iterator[None]:
    """Within this context, a command that is stopped says that ``again`` continues it."""
    try:
        yield
    except KeyboardInterrupt:
        log.say(f"stopping; to continue: {again}")
        raise


def _check_mirror(directory: RunDirectory, cluster: ClusterConfig, console: Console) -> None:
    """Raise RunDirectoryError if the copy of a run that goes on is that of another one."""
    mirror = mirror_of(directory, cluster)
    if mirror is not None:
        with console.status("checking storage_path"):
            mirror.check(directory.path, new=False)


def conclude(directory: RunDirectory, cluster: ClusterConfig, console: Console) -> None:
    """Do what is left to do for a run whose command was killed when the last score had been written."""
    cluster = _with_absolute_storage(cluster)
    with CommandLog(console, f"ray-l4 resume {directory.path}") as log, directory.lock():
        log.keep_in(directory.log(_COMMAND_LOG))
        _check_mirror(directory, cluster, console)
        _conclude(FinishedRun.open(directory.path), cluster, log)


def _conclude(finished: FinishedRun, cluster: ClusterConfig, log: CommandLog) -> None:
    """Write and print the results, and bring the copy of the run directory up to date."""
    directory = finished.directory
    mirror = mirror_of(directory, cluster)
    with _resumable(directory, log):
        log.say(fusion_table(finished) or comparison([finished]))
        log.say(_next_steps(finished))
        if mirror is not None:
            with log.console.status(f"copying to {mirror.address}"):
                mirror.push(directory.path)
        # Written last: resuming a run without it begins here.
        write_text(directory.path / "report.md", run_report(finished))
        if mirror is not None:
            mirror.push(directory.path)
    if mirror is not None:
        # Not kept in the log, which the copy has as it is now.
        log.console.print(f"copy of the run directory: {mirror.address}", highlight=False, soft_wrap=True)


def _next_steps(run: FinishedRun) -> str:
    """Return the commands that a user may want after a run, ready to paste."""
    students = (student for student in run.students if student not in run.lost_students)
    cell = run.final_cell(min(students, default=0), run.tasks[-1])
    checkpoint = shlex.quote(str(run.directory.checkpoint(cell.stage, cell.epoch, cell.student)))
    # As one word if a parser would take the name for an option.
    task = f"--task{'=' if cell.task.startswith('-') else ' '}{shlex.quote(cell.task)}"
    commands = {
        f"ray-l4 report {shlex.quote(str(run.path))}": "writes report.html: curves, replay, worst answers",
        f"ray-l4 evaluate {checkpoint} {task} --show 3": "scores it, and shows three answers",
        f"ray-l4 ask {checkpoint} {task}": "asks it",
    }
    if get_method(run.method).has_peer_teachers:
        commands[f"ray-l4 serve {shlex.quote(str(run.path))}"] = "answers over HTTP"
    return "\n".join(["next:", *(f"  {command}   # {what}" for command, what in commands.items())])
