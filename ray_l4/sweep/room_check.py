"""Bundles that trials reserve, and the check that a profile has room for them; needs no Ray."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from ray_l4.cluster.placement import Resources, bundles, check_room, local_resources
from ray_l4.config.cluster import ClusterConfig
from ray_l4.errors import ClusterError
from ray_l4.methods import graph_of
from ray_l4.setup.early_check import check_settings
from ray_l4.sweep.trials import Trial


def trial_bundles(trial: Trial, cluster: ClusterConfig) -> list[dict[str, float]]:
    """Return the bundles that a trial reserves: those of its run, or one for a run that needs no Ray."""
    students = cluster.students
    if not cluster.in_one_process:
        return bundles(graph_of(trial.experiment).size, cluster)
    amounts = {"CPU": float(students.threads or students.cpus), "GPU": students.gpus}
    return [{name: amount for name, amount in amounts.items() if amount} | students.resources]


def check_fit(trials: Collection[Trial], cluster: ClusterConfig) -> None:
    """Raise the error of a trial that could never run: of its settings or files, or of a profile without room."""
    for trial in trials:
        check_settings(trial.experiment, cluster)
    if cluster.ray.address is None:
        check_room_for_trials(trials, cluster, [local_resources(cluster)])


def check_room_for_trials(trials: Iterable[Trial], cluster: ClusterConfig, nodes: Sequence[Resources]) -> None:
    """Raise ClusterError if one of the trials alone would not fit on the nodes' whole resources."""
    for trial in trials:
        if not cluster.in_one_process:
            check_room(graph_of(trial.experiment).size, cluster, nodes)
            continue
        (wanted,) = trial_bundles(trial, cluster)
        if not any(all(node.get(name, 0) >= amount for name, amount in wanted.items()) for node in nodes):
            raise ClusterError(f"no room for one run, which needs {wanted}; the nodes have {list(map(dict, nodes))}")
