"""What a run asks of a cluster, and whether the cluster can give it: known before anything is started."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ray_l4.cluster.bin_packing import lay_out
from ray_l4.config import cluster as profile
from ray_l4.config.cluster import ClusterConfig
from ray_l4.errors import ClusterError

Resources = Mapping[str, float]

_WHY_NOT = {
    "PACK": "a process takes a share in one GPU, or whole GPUs of one node",
    "SPREAD": "a process takes a share in one GPU, or whole GPUs of one node",
    "STRICT_PACK": "all of them have to fit on one node",
    "STRICT_SPREAD": "every one of them takes a node of its own",
}
"""Reasons for which what is enough in total does not suffice."""


def bundles(peers: int, cluster: ClusterConfig) -> list[dict[str, float]]:
    """One bundle for each process that reserves anything, in Ray's names of resources.

    First the students, one bundle for each rank (peer 0 shard 0, peer 0 shard 1, ..., peer 1 shard 0, ...), then the
    evaluators.
    """
    return [dict(group.bundle) for group in _groups(peers, cluster) for _ in range(group.count)]


def bundle_of(share: profile.Resources) -> dict[str, float]:
    """What one process reserves; empty if nothing."""
    amounts = {"CPU": share.cpus, "GPU": share.gpus, **share.resources}
    return {name: amount for name, amount in amounts.items() if amount > 0}


def describe_request(peers: int, cluster: ClusterConfig) -> str:
    """What is asked for, in words."""
    students, evaluators = cluster.students, cluster.evaluators
    shards = students.shards_per_student
    asked = f"with {_share(students)} each" if shards == 1 else f"of {shards} shards, {_share(students)} each shard"
    return f"{peers} students {asked}, {evaluators.count} evaluators with {_share(evaluators)} each"


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
    """Those there are, at most as many as the profile names: Ray would believe it and start processes without any."""
    if cluster.ray.num_gpus == 0 or not (cluster.students.gpus or cluster.evaluators.gpus):
        return 0
    import torch  # only where somebody asks for one: it takes seconds to load

    there = torch.cuda.device_count()
    return there if cluster.ray.num_gpus is None else min(cluster.ray.num_gpus, there)


def check_room(peers: int, cluster: ClusterConfig, nodes: Sequence[Resources]) -> list[int]:
    """A node for each bundle, such that all fit on the nodes' whole resources; Ray may choose others that do.

    Raises ClusterError with what is asked and what there is, if the bundles cannot fit whatever else is running.
    """
    students, evaluators = _groups(peers, cluster)
    wanted = (students.count, evaluators.count)
    layout = lay_out(wanted, students.bundle, evaluators.bundle, nodes, cluster.placement.strategy)
    if layout is None:
        raise ClusterError(_refusal(peers, cluster, nodes))
    of_students, of_evaluators = ([node for node, held in enumerate(layout) for _ in range(held[k])] for k in (0, 1))
    return of_students + of_evaluators


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


@dataclass(frozen=True)
class _Group:
    """Processes that reserve the same."""

    who: str
    each: str
    """What one of them is called."""
    count: int
    bundle: Mapping[str, float]

    def claim(self, name: str) -> str:
        """Its part in the request for a resource: ``4 students with 1 GPU each``."""
        return f"{self.who} with {self.bundle[name]:g} {name} {self.each}"


def _groups(peers: int, cluster: ClusterConfig) -> tuple[_Group, _Group]:
    """Students, and those evaluators that reserve anything."""
    students, evaluators, shards = cluster.students, cluster.evaluators, cluster.students.shards_per_student
    who, each = (f"{peers} students of {shards} shards", "each shard") if shards > 1 else (f"{peers} students", "each")
    reserved = bundle_of(evaluators)
    return (
        _Group(who, each, peers * shards, bundle_of(students)),
        _Group(f"{evaluators.count} evaluators", "each", evaluators.count if reserved else 0, reserved),
    )


def _refusal(peers: int, cluster: ClusterConfig, nodes: Sequence[Resources]) -> str:
    groups, strategy = _groups(peers, cluster), cluster.placement.strategy
    names = list(dict.fromkeys(name for group in groups for name in group.bundle))
    asked = {name: sum(group.count * group.bundle.get(name, 0) for group in groups) for name in names}
    there = {name: sum(node.get(name, 0) for node in nodes) for name in names}
    short = [name for name in names if asked[name] > there[name]]
    claims = {name: ", ".join(group.claim(name) for group in groups if name in group.bundle) for name in names}
    request = "; ".join(
        f"asks for {asked[name]:g} {name} ({claims[name]}), there are {there[name]:g}" for name in names
    )
    return (
        f"no room for {describe_request(peers, cluster)} (placement {strategy}): {request}. "
        f"There {_held(nodes, dict.fromkeys(['CPU', 'GPU', *names]))}. "
        f"{'' if short else f'That would do in total, but {_WHY_NOT[strategy]}. '}{_advice(short, cluster)}"
    )


def _held(nodes: Sequence[Resources], names: Iterable[str]) -> str:
    """Every node's amounts of some resources; equal nodes are told once."""
    held = Counter(_amounts({name: node.get(name, 0) for name in names}, ", ") for node in nodes)
    texts = [text if count == 1 else f"{count} x ({text})" for text, count in held.items()]
    number = "is one node" if len(nodes) == 1 else f"are {len(nodes)} nodes"
    return f"{number} with {'; '.join(texts) or 'nothing'}"


def _advice(short: Iterable[str], cluster: ClusterConfig) -> str:
    shards = ", fewer shards (students.shards_per_student)" if cluster.students.shards_per_student > 1 else ""
    custom = next((name for name in short if name not in ("CPU", "GPU")), None)
    offer = (
        f" A node offers {custom} if Ray was started there with --resources='{{\"{custom}\": 1}}'." if custom else ""
    )
    return (
        f"Ask for fewer peers (peers.count){shards} or less for each (students.cpus, students.gpus), or add nodes."
        + offer
    )


def _share(share: profile.Resources) -> str:
    """CPUs and GPUs, and whatever else is asked for."""
    return _amounts({"CPU": share.cpus, "GPU": share.gpus, **share.resources}, " and ")


def _amounts(amounts: Resources, separator: str) -> str:
    return separator.join(f"{amount:g} {name}" for name, amount in amounts.items())
