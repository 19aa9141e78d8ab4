"""What a run asks of a cluster, and whether the cluster can give it: known before anything is started."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from ray_l4.config.cluster import ClusterConfig
from ray_l4.errors import ClusterError

Resources = Mapping[str, float]

_ROUNDING = 1e-6
"""Fractions of a GPU add up only nearly; Ray itself counts in units of 1e-4."""


def bundles(peers: int, cluster: ClusterConfig) -> list[dict[str, float]]:
    """One bundle for each actor that reserves anything: students first, then evaluators."""
    wanted = [_bundle(cluster.students.cpus, cluster.students.gpus)] * peers
    wanted += [_bundle(cluster.evaluators.cpus, cluster.evaluators.gpus)] * cluster.evaluators.count
    return [dict(bundle) for bundle in wanted if bundle]


def _bundle(cpus: float, gpus: float) -> dict[str, float]:
    return {name: amount for name, amount in (("CPU", cpus), ("GPU", gpus)) if amount > 0}


def describe_request(peers: int, cluster: ClusterConfig) -> str:
    """What is asked for, in words."""
    students, evaluators = cluster.students, cluster.evaluators
    return (
        f"{peers} students with {students.cpus:g} CPU and {students.gpus:g} GPU each, "
        f"{evaluators.count} evaluators with {evaluators.cpus:g} CPU and {evaluators.gpus:g} GPU each"
    )


def local_resources(cluster: ClusterConfig) -> dict[str, float]:
    """What a local cluster of this profile would have."""
    cpus = cluster.ray.num_cpus or usable_cores()
    return {"CPU": float(cpus), "GPU": float(_gpus(cluster))}


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _gpus(cluster: ClusterConfig) -> int:
    if cluster.ray.num_gpus is not None:
        return cluster.ray.num_gpus
    import torch  # only where nobody says how many there are: it takes seconds to load

    return torch.cuda.device_count()


def check_room(peers: int, cluster: ClusterConfig, nodes: Sequence[Resources]) -> list[int]:
    """The node each bundle would go to, by first fit on the nodes' whole resources.

    Raises ClusterError with what is asked and what there is, if the bundles cannot fit whatever else is running.
    """
    strategy, wanted = cluster.placement.strategy, bundles(peers, cluster)
    everywhere = range(len(nodes))
    attempts = [range(n, n + 1) for n in everywhere] if strategy == "STRICT_PACK" else [everywhere]
    for candidates in attempts:
        chosen = _first_fit(wanted, nodes, candidates, once=strategy == "STRICT_SPREAD")
        if chosen is not None:
            return chosen
    raise ClusterError(
        f"no room for {describe_request(peers, cluster)} (placement {strategy}). There "
        f"{'is one node' if len(nodes) == 1 else f'are {len(nodes)} nodes'} with {_words(nodes)}. "
        "Ask for fewer peers (peers.count) or less for each (students.cpus, students.gpus), or add nodes."
    )


def room_for(least: int, most: int, cluster: ClusterConfig, nodes: Sequence[Resources]) -> int:
    """How many students fit, up to ``most``. Raises ClusterError if not even ``least`` do."""
    check_room(least, cluster, nodes)
    for students in range(most, least, -1):
        try:
            check_room(students, cluster, nodes)
        except ClusterError:
            continue
        return students
    return least


def _first_fit(
    wanted: Sequence[Resources], nodes: Sequence[Resources], candidates: range, *, once: bool
) -> list[int] | None:
    """The first of the candidate nodes with room for each bundle, each node at most once if so asked; None if full."""
    left = [dict(node) for node in nodes]
    chosen: list[int] = []
    for bundle in wanted:
        free = [n for n in candidates if not (once and n in chosen)]
        node = next((n for n in free if all(left[n].get(k, 0) >= v - _ROUNDING for k, v in bundle.items())), None)
        if node is None:
            return None
        for name, amount in bundle.items():
            left[node][name] -= amount
        chosen.append(node)
    return chosen


def _words(nodes: Sequence[Resources]) -> str:
    return "; ".join(f"{node.get('CPU', 0):g} CPU, {node.get('GPU', 0):g} GPU" for node in nodes) or "nothing"
