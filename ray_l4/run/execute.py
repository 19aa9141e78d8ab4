"""Executes a run for the command line: prepare, start, watch, report."""

from __future__ import annotations

import platform
import shlex
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

from rich.console import Console

from ray_l4.cluster.connection import Connection, check_cluster
from ray_l4.config.cluster import ClusterConfig
from ray_l4.config.experiment import ExperimentConfig
from ray_l4.config.loading import dump_yaml
from ray_l4.errors import RunDirectoryError
from ray_l4.methods import graph_of
from ray_l4.monitor.live_view import watch
from ray_l4.report.finished_run import FinishedRun
from ray_l4.report.markdown import comparison, run_report
from ray_l4.run.command_log import CommandLog
from ray_l4.run.session import Session, open_session
from ray_l4.run.teachers import named_teachers
from ray_l4.setup.early_check import check_raw_data, check_settings
from ray_l4.setup.rank_check import check_ranks
from ray_l4.setup.setup import Setup, prepare
from ray_l4.store.atomic import write_folder, write_text
from ray_l4.store.begun_with import (
    FINGERPRINT_KEY,
    VERSIONS_KEY,
    begun_fingerprint,
    begun_versions,
    changed_versions,
    check_experiment,
    recorded,
)
from ray_l4.store.mirror import MIRROR_NAME_KEY, Mirror, mirror_of
from ray_l4.store.run_directory import RunDirectory
from ray_l4.store.storage import absolute_address

_LIBRARIES = ("ray-l4", "torch", "ray", "transformers", "tokenizers", "pyarrow", "rouge-score")

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
            setup, connection = _prepared(experiment, cluster, held)
        directory = RunDirectory.create(folder, setup.experiment, cluster, {**manifest, **_manifest(command, setup)})
        with directory.lock():
            with _resumable(directory, log):
                log.keep_in(directory.log(_COMMAND_LOG))
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
            setup, connection = _prepared_again(directory, cluster, held, log)
            write_text(directory.path / "cluster.yaml", dump_yaml(cluster))
            session = _session(setup, cluster, directory, connection, log)
        _go(session, cluster, directory, log)


def _prepared_again(
    directory: RunDirectory, cluster: ClusterConfig, held: ExitStack, log: CommandLog
) -> tuple[Setup, Connection | None]:
    """Prepare a run that goes on, as ``_prepared``.

    Raises RunDirectoryError if it is not that with which the run began, or if its copy belongs to another run.
    """
    experiment, manifest = directory.experiment(), directory.manifest()
    fingerprint = begun_fingerprint(directory)
    check_experiment(directory.path / "config.yaml", experiment, manifest)
    _check_mirror(directory, cluster, log.console)
    with log.console.status("reading and tokenising data"):
        setup, connection = _prepared(experiment, cluster, held, directory.state().lost_students)
    if setup.fingerprint() != fingerprint:
        raise RunDirectoryError(
            f"{directory.path}: the data or the tokeniser has changed since the run began, so its scores would not "
            "be comparable. Restore the old data, or start a new run."
        )
    changed = changed_versions(begun_versions(directory), {"python": _python(), **_versions()})
    if changed:
        log.say(
            f"warning: the run began with other versions: {'; '.join(changed)}. Its results may differ from those "
            "of a run that was not interrupted."
        )
    return setup, connection


def _with_absolute_storage(cluster: ClusterConfig) -> ClusterConfig:
    """Return the profile with an absolute ``storage_path``: it is used by processes with other working directories."""
    if cluster.storage_path is None:
        return cluster
    return cluster.model_copy(update={"storage_path": absolute_address(cluster.storage_path)})


def _prepared(
    experiment: ExperimentConfig, cluster: ClusterConfig, held: ExitStack, lost: Collection[int] = ()
) -> tuple[Setup, Connection | None]:
    """Check that the cluster has room for all workers except ``lost`` students, then prepare the data they share.

    Also returns a connection, closed with ``held``, if the cluster is one that starts on this machine: it does so while
    the data is tokenised. An error in the data shows before, without a wait for Ray.
    """
    check_settings(experiment, cluster)
    check_raw_data(experiment)
    students = len(graph_of(experiment).without(lost).present)
    check_cluster(students, cluster)
    if cluster.in_one_process or cluster.ray.address is not None:
        connection, setup = None, prepare(experiment)
    else:
        connection = Connection(students, cluster)
        held.callback(connection.close)
        setup = prepare(experiment, connection.begin)
    check_ranks(setup, cluster)
    named_teachers(setup)  # raises if they do not fit, before anything is created
    return setup, connection


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


@contextmanager
def _resumable(directory: RunDirectory, log: CommandLog) -> Iterator[None]:
    """Within this context, a command that is stopped says how to continue."""
    try:
        yield
    except KeyboardInterrupt:
        log.say(f"stopping; to continue: ray-l4 resume {shlex.quote(str(directory.path))}")
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
        log.say(comparison([finished]))
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
    return "\n".join(["next:", *(f"  {command}   # {what}" for command, what in commands.items())])


def _manifest(command: str, setup: Setup) -> dict[str, object]:
    return {
        "command": command,
        "started": datetime.now().astimezone().isoformat(sep=" ", timespec="seconds"),
        "python": _python(),
        "platform": platform.platform(),
        VERSIONS_KEY: _versions(),
        FINGERPRINT_KEY: setup.fingerprint(),
        "training_examples": {task: table.num_rows for task, table in setup.training.items()},
        "longest_sequences": setup.longest_sequences,
        "validation_examples": {task: table.num_rows for task, table in setup.validation.items()},
        "test_examples": {task: len(tests.items) for task, tests in setup.tests.items()},
        "vocabulary": setup.tokenizer.size,
        **recorded(setup.experiment),
    }


def _python() -> str:
    return sys.version.split()[0]


def _versions() -> dict[str, str]:
    return {library: version(library) for library in _LIBRARIES}
