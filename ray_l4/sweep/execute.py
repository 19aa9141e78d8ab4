"""Execution of a sweep: checks, the trials that are not done yet, and the table of all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import ray
from rich.console import Console

from ray_l4.cluster.connection import connect, node_resources
from ray_l4.config.cluster import ClusterConfig
from ray_l4.errors import RayL4Error
from ray_l4.sweep.directory import SweepDirectory, describe_states
from ray_l4.sweep.room_check import check_fit, check_room_for_trials
from ray_l4.sweep.trials import Sweep, Trial
from ray_l4.sweep.tune import run_on_tune
from ray_l4.sweep.view import SweepView
from ray_l4.tasks.registry import load


def run_sweep(sweep: Sweep, cluster: ClusterConfig, directory: SweepDirectory, command: str, console: Console) -> None:
    """Run all trials of ``sweep`` that are not done, and print the table of all.

    ``command`` is recorded in the manifest of each run. Raises RayL4Error before anything is started if the sweep
    cannot run, and at the end if trials failed.
    """
    states = directory.states(sweep)
    pending = {trial.name: trial for trial in sweep.trials if states[trial.name] != "done"}
    console.print(f"{sweep.title}: {describe_states(states.values())}", soft_wrap=True, highlight=False)
    check_fit(pending.values(), cluster)
    with console.status("reading data"):
        _check_data(pending.values())
    with directory.lock():
        directory.record(sweep)
        directory.write_missing_reports()
        view = SweepView(pending, len(sweep.trials) - len(pending), directory, console)
        failures = _run(pending, directory, cluster, command, view, console) if pending else {}
        table = directory.write_table()
    if table is not None:
        console.print(f"\n{table}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"sweep directory: {directory.path}", highlight=False, soft_wrap=True)
    _report_failures(failures, len(sweep.trials), directory, console)


def _check_data(trials: Iterable[Trial]) -> None:
    """Load every task once, so that an error in the data is reported once and not by each trial."""
    experiments = [trial.experiment for trial in trials]
    items = {
        (name == item.name, item.model_dump_json(), experiment.data.model_dump_json()): (name, item, experiment.data)
        for experiment in experiments
        for name, item in experiment.items.items()
    }
    for name, item, data in items.values():
        load(item, "train", data)
        if name == item.name:  # a task that comes back has its test set already
            load(item, "test", data)


def _run(
    pending: Mapping[str, Trial],
    directory: SweepDirectory,
    cluster: ClusterConfig,
    command: str,
    view: SweepView,
    console: Console,
) -> dict[str, str]:
    """Run the pending trials on Ray; return the message of each trial that failed, by name."""
    with console.status("starting Ray"):
        connect(1, cluster)
    try:
        check_room_for_trials(pending.values(), cluster, node_resources())
        with view.shown():
            return run_on_tune(pending, directory, cluster, command, view)
    except KeyboardInterrupt:
        console.print("stopping; run the same command again to continue", highlight=False)
        raise
    finally:
        ray.shutdown()


def _report_failures(failures: Mapping[str, str], total: int, directory: SweepDirectory, console: Console) -> None:
    """Print the message of each failed trial, then raise RayL4Error; return if none failed."""
    if not failures:
        return
    for name, message in failures.items():
        console.print(f"failed: {name}: {message}", markup=False, highlight=False, soft_wrap=True)
    raise RayL4Error(
        f"{len(failures)} of {total} trials failed; their logs are in {directory.path / 'logs'}. "
        "Run the same command again to retry them; the others are not repeated."
    )
