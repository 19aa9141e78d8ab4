"""The resources that a run requests, and whether a cluster has them: checked before any worker is started."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ray_l4.cluster.bin_packing import assign
from ray_l4.config import cluster as profile
from ray_l4.config.cluster import ClusterConfig
from ray_l4.config.text import counted
from ray_l4.errors import ClusterError

Resources = Mapping[str, float]

_REASONS = {
    "PACK": "a process takes a share of one GPU, or whole GPUs of one node",
    "SPREAD": "a process takes a share of one GPU, or whole GPUs of one node",
    "STRICT_PACK": "all processes have to fit on one node",
    "STRICT_SPREAD": "each process takes a node of its own",
}
"""Strategy -> why resources that suffice in total may still be too few."""


def bundles(peers: int, cluster: ClusterConfig) -> list[dict[str, float]]:
    """Return one bundle for each process that reserves anything, with Ray's names of resources.

    The students come first, with one bundle for each rank (peer 0 rank 0, peer 0 rank 1, ..., peer 1 rank 0, ...), then
    the evaluators.
    """
    return [dict(group.bundle) for group in _processes(peers, cluster) for _ in range(group.count)]


def bundle_of(share: profile.Resources) -> dict[str, float]:
    """Return what one process reserves; empty if it reserves nothing."""
    amounts = {"CPU": share.cpus, "GPU": share.gpus, **share.resources}
    return {name: amount for name, amount in amounts.items() if amount > 0}


def describe_request(peers: int, cluster: ClusterConfig) -> str:
    """Describe the request of a run in words."""
    students, evaluators = cluster.students, cluster.evaluators
    ranks = students.shards_per_student
    request = f"with {_share(students)} each" if ranks == 1 else f"of {ranks} ranks with {_share(students)} per rank"
    return (
        f"{counted(peers, 'student')} {request}, "
        f"{counted(evaluators.count, 'evaluator')} with {_share(evaluators)} each"
    )


def local_resources(cluster: ClusterConfig) -> dict[str, float]:
    """Return the resources that a local cluster of this profile would have."""
    cpus = cluster.ray.num_cpus or usable_cores()
    return {"CPU": float(cpus), "GPU": float(_gpus(cluster))}


def usable_cores() -> int:
    """Return the number of cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _gpus(cluster: ClusterConfig) -> int:
    """Return the number of GPUs of this machine, at most as many as the profile names.

    Ray would trust the profile, and start processes that find no GPU.
    """
    if cluster.ray.num_gpus == 0 or not (cluster.students.gpus or cluster.evaluators.gpus):
        return 0
    import torch  # only for profiles that ask for GPUs: it takes seconds to load

    found = torch.cuda.device_count()
    return found if cluster.ray.num_gpus is None else min(cluster.ray.num_gpus, found)


def check_room(peers: int, cluster: ClusterConfig, nodes: Sequence[Resources]) -> list[int]:
    """Return a node for each bundle such that all fit, if nothing else runs there. Ray may choose other nodes.

    Raises ClusterError, with the request and the nodes' resources, if the bundles do not fit even then.
    """
    students, evaluators = _processes(peers, cluster)
    wanted = (students.count, evaluators.count)
    counts = assign(wanted, students.bundle, evaluators.bundle, nodes, cluster.placement.strategy)
    if counts is None:
        raise ClusterError(_refusal(peers, cluster, nodes))
    of_students, of_evaluators = ([node for node, held in enumerate(counts) for _ in range(held[k])] for k in (0, 1))
    return of_students + of_evaluators


def room_for(least: int, most: int, cluster: ClusterConfig, nodes: Sequence[Resources]) -> int:
    """Return how many students fit, up to ``most``. Raises ClusterError if not even ``least`` do."""
    check_room(least, cluster, nodes)
    for students in range(most, least, -1):
        try:
            check_room(students, cluster, nodes)
        except ClusterError:
            continue
        return students
    return least


@dataclass(frozen=True)
class _EqualProcesses:
    """Processes that reserve the same resources."""

    name: str
    unit: str
    """The words after an amount: ``each`` or ``per rank``."""
    count: int
    bundle: Mapping[str, float]

    def request(self, resource: str) -> str:
        """Describe how much of a resource they request, for example ``4 students with 1 GPU each``."""
        return f"{self.name} with {self.bundle[resource]:g} {resource} {self.unit}"


def _processes(peers: int, cluster: ClusterConfig) -> tuple[_EqualProcesses, _EqualProcesses]:
    """Return the ranks of all students, and the evaluators if they reserve anything."""
    students, evaluators, ranks = cluster.students, cluster.evaluators, cluster.students.shards_per_student
    name = counted(peers, "student")
    name, unit = (f"{name} of {ranks} ranks", "per rank") if ranks > 1 else (name, "each")
    reserved = bundle_of(evaluators)
    return (
        _EqualProcesses(name, unit, peers * ranks, bundle_of(students)),
        _EqualProcesses(counted(evaluators.count, "evaluator"), "each", evaluators.count if reserved else 0, reserved),
    )


def _refusal(peers: int, cluster: ClusterConfig, nodes: Sequence[Resources]) -> str:
    processes, strategy = _processes(peers, cluster), cluster.placement.strategy
    names = list(dict.fromkeys(name for own in processes for name in own.bundle))
    needed = {name: sum(own.count * own.bundle.get(name, 0) for own in processes) for name in names}
    available = {name: sum(node.get(name, 0) for node in nodes) for name in names}
    short = [name for name in names if needed[name] > available[name]]
    requests = {name: ", ".join(own.request(name) for own in processes if name in own.bundle) for name in names}
    comparison = "; ".join(
        f"asks for {needed[name]:g} {name} ({requests[name]}), there are {available[name]:g}" for name in names
    )
    return (
        f"no room for {describe_request(peers, cluster)} (placement {strategy}): {comparison}. "
        f"There {_describe_nodes(nodes, dict.fromkeys(['CPU', 'GPU', *names]))}. "
        f"{'' if short else f'That is enough in total, but {_REASONS[strategy]}. '}{_advice(short, cluster)}"
    )


def _describe_nodes(nodes: Sequence[Resources], names: Iterable[str]) -> str:
    """Describe each node's amounts of some resources; equal nodes are listed once, with their number."""
    counts = Counter(_amounts({name: node.get(name, 0) for name in names}, ", ") for node in nodes)
    texts = [text if count == 1 else f"{count} x ({text})" for text, count in counts.items()]
    number = "is one node" if len(nodes) == 1 else f"are {len(nodes)} nodes"
    return f"{number} with {'; '.join(texts) or 'nothing'}"


def _advice(short: Iterable[str], cluster: ClusterConfig) -> str:
    ranks = ", fewer ranks (students.shards_per_student)" if cluster.students.shards_per_student > 1 else ""
    custom = next((name for name in short if name not in ("CPU", "GPU")), None)
    how_to_offer = (
        f" A node offers {custom} if Ray was started there with --resources='{{\"{custom}\": 1}}'." if custom else ""
    )
    return (
        f"Ask for fewer peers (peers.count){ranks} or less for each (students.cpus, students.gpus), or add nodes."
        + how_to_offer
    )


def _share(share: profile.Resources) -> str:
    """Describe the CPUs and GPUs of a process, and its other resources if it has any."""
    return _amounts({"CPU": share.cpus, "GPU": share.gpus, **share.resources}, " and ")


def _amounts(amounts: Resources, separator: str) -> str:
    return separator.join(f"{amount:g} {name}" for name, amount in amounts.items())
