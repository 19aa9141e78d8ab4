"""A sweep from the first check to the last line: what is done is left alone, the rest is run, one table at the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

import ray
from rich.console import Console

from ray_l4.cluster.connection import connect, node_resources
from ray_l4.cluster.placement import Resources, check_room, local_resources
from ray_l4.config.cluster import ClusterConfig
from ray_l4.errors import ClusterError, RayL4Error
from ray_l4.methods import graph_of
from ray_l4.setup.exchange_check import check_exchange
from ray_l4.sweep.folder import State, SweepFolder
from ray_l4.sweep.run_trial import needs
from ray_l4.sweep.trials import Plan, Trial
from ray_l4.sweep.tune import run_on_tune
from ray_l4.sweep.view import SweepView
from ray_l4.tasks.registry import load


def run_sweep(plan: Plan, cluster: ClusterConfig, folder: SweepFolder, command: str, console: Console) -> None:
    """Run all trials of ``plan`` that are not done, and print the table of all.

    Raises RayL4Error before anything is started if something prevents it, and at the end if trials failed.
    """
    states = folder.states(plan)
    pending = {trial.folder: trial for trial in plan.trials if states[trial.folder] != "done"}
    console.print(f"{plan.title}: {count_states(states.values())}", soft_wrap=True, highlight=False)
    check_fit(pending.values(), cluster)
    with console.status("reading data"):
        _check_data(pending.values())
    with folder.lock():
        folder.record(plan)
        folder.complete_reports()
        view = SweepView(pending, len(plan.trials) - len(pending), folder, console)
        failures = _run(pending, folder, cluster, command, view, console) if pending else {}
        table = folder.table()
    if table is not None:
        console.print(f"\n{table}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"folder of the sweep: {folder.path}", highlight=False, soft_wrap=True)
    _raise_if_any(failures, len(plan.trials), folder, console)


def count_states(states: Iterable[State]) -> str:
    """How many trials there are and how far they have come, in words."""
    counts = Counter(states)
    return f"{counts.total()} trials: {counts['done']} already done, {counts['begun']} begun, {counts['new']} new"


def check_fit(trials: Collection[Trial], cluster: ClusterConfig) -> None:
    """Raise ConfigError or ClusterError if a trial can never run as this profile has it, however long it waits."""
    for trial in trials:
        check_exchange(trial.experiment, cluster)
    if cluster.ray.address is None:
        _check_room(trials, cluster, [local_resources(cluster)])


def _check_room(trials: Iterable[Trial], cluster: ClusterConfig, nodes: Sequence[Resources]) -> None:
    for trial in trials:
        if cluster.exchange.transport != "in_process":
            check_room(graph_of(trial.experiment).size, cluster, nodes)
            continue
        (wanted,) = needs(trial, cluster)
        if not any(all(node.get(name, 0) >= amount for name, amount in wanted.items()) for node in nodes):
            raise ClusterError(f"no room for one run, which takes {wanted}; the nodes have {list(map(dict, nodes))}")


def _check_data(trials: Iterable[Trial]) -> None:
    """Load every task once: what is wrong with the data is said now, and not by each trial."""
    experiments = [trial.experiment for trial in trials]
    tasks = {
        (task.model_dump_json(), experiment.data.model_dump_json()): (task, experiment.data)
        for experiment in experiments
        for task in experiment.stream
    }
    for task, data in tasks.values():
        load(task, "train", data)
        load(task, "test", data)


def _run(
    pending: Mapping[str, Trial],
    folder: SweepFolder,
    cluster: ClusterConfig,
    command: str,
    view: SweepView,
    console: Console,
) -> dict[str, str]:
    with console.status("starting Ray"):
        connect(1, cluster)
    try:
        _check_room(pending.values(), cluster, node_resources())
        with view.shown():
            return run_on_tune(pending, folder, cluster, command, view)
    except KeyboardInterrupt:
        console.print("stopping; the same command goes on with it", highlight=False)
        raise
    finally:
        ray.shutdown()


def _raise_if_any(failures: Mapping[str, str], total: int, folder: SweepFolder, console: Console) -> None:
    if not failures:
        return
    for name, message in failures.items():
        console.print(f"failed: {name}: {message}", markup=False, highlight=False, soft_wrap=True)
    raise RayL4Error(
        f"{len(failures)} of {total} trials failed; what they said stands in {folder.path / 'logs'}. "
        "The same command tries them again, and leaves the others alone."
    )
