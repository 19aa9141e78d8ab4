"""The devices of a run: the processes on each, the memory that they need, and the memory that it has."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from ray_l4.cluster.placement import bundles, check_room, local_resources
from ray_l4.config.cluster import ClusterConfig
from ray_l4.errors import ClusterError
from ray_l4.planning.process_baselines import RAY_ITSELF
from ray_l4.planning.processes import COORDINATION, Process
from ray_l4.planning.requirements import Requirements

_ROUNDING = 1e-6
"""Tolerance for sums of fractions of a GPU."""


@dataclass(frozen=True)
class Device:
    """A GPU, or a node's main memory, with the processes of a run on it."""

    name: str
    roles: tuple[str, ...]
    """Roles of the processes, one entry per process."""
    needed: int
    """Bytes that the processes need."""
    available: int | None
    """Bytes that the device has; None if unknown."""

    @property
    def fits(self) -> bool:
        """True if the device has enough memory, or if its memory is unknown."""
        return self.available is None or self.needed <= self.available


def node_memory() -> int:
    """Return the bytes of main memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def devices_of(
    requirements: Requirements, peers: int, cluster: ClusterConfig, device_memory: int | None
) -> list[Device]:
    """Return the devices of a run, GPUs first, each with its processes.

    device_memory: bytes of every device (GPU if students use any, otherwise main memory of a node), to plan for another
    cluster, which then has as many of them as the run needs. If None, the devices are those of this machine.
    Raises ClusterError if this machine has no room for the processes, or if None was given for another cluster.
    """
    placed, unplaced = _individual_processes(requirements, cluster)
    in_process = cluster.in_one_process
    nodes = [0] * len(placed) if in_process else _node_of_each_bundle(peers, cluster, device_memory)
    nodes = nodes[: len(placed)] + [0] * (len(placed) - len(nodes))
    gpus = _gpus([(p, n) for p, n in zip(placed, nodes, strict=True) if p.gpu], cluster, device_memory)
    if device_memory is None:
        available: int | None = node_memory()
    else:
        available = None if gpus else device_memory
    of_ray = 0 if in_process else RAY_ITSELF + requirements.object_store
    mains = []
    for node in sorted({*nodes, 0}):
        here = [process for process, its_node in zip(placed, nodes, strict=True) if its_node == node]
        here += unplaced if node == 0 else []
        needed = sum(process.host for process in here) + of_ray
        mains.append(Device(f"node {node}, main memory", tuple(p.role for p in here), needed, available))
    return [*gpus, *mains]


def _individual_processes(requirements: Requirements, cluster: ClusterConfig) -> tuple[list[Process], list[Process]]:
    """Return one entry per process: those with a bundle, in the order of the bundles, and all others."""
    processes = [process for process in requirements.processes for _ in range(process.count)]
    if cluster.in_one_process:
        return processes, []
    free = {COORDINATION} | (set() if cluster.evaluators.cpus or cluster.evaluators.gpus else {"evaluator"})
    return [p for p in processes if p.role not in free], [p for p in processes if p.role in free]


def _node_of_each_bundle(peers: int, cluster: ClusterConfig, device_memory: int | None) -> list[int]:
    """Return a node for every bundle: this machine, or as many nodes as the placement strategy asks for."""
    if device_memory is None:
        if cluster.ray.address is not None:
            raise ClusterError(
                f"ray.address: {cluster.ray.address} is another cluster, whose memory is not known here; give the "
                "memory of its devices: --device-memory 80GiB"
            )
        return check_room(peers, cluster, [local_resources(cluster)])
    count = len(bundles(peers, cluster))
    return list(range(count)) if "SPREAD" in cluster.placement.strategy else [0] * count


def _gpus(placed: Sequence[tuple[Process, int]], cluster: ClusterConfig, device_memory: int | None) -> list[Device]:
    """Return all GPUs with their processes.

    placed: processes with their nodes. A share goes to the first GPU of its node that has room; whole GPUs are new.
    """
    shares = {"evaluator": cluster.evaluators.gpus}
    gpus: list[tuple[int, float, list[Process]]] = []  # node, share that is left, processes
    for process, node in placed:
        share = shares.get(process.role, cluster.students.gpus)
        index = next((i for i, (n, left, _) in enumerate(gpus) if n == node and left + _ROUNDING >= share), None)
        if share < 1 and index is not None:
            _, left, others = gpus[index]
            gpus[index] = (node, left - share, [*others, process])
        else:
            gpus.append((node, max(0.0, 1 - share), [process]))
    sizes = _gpu_memory(len(gpus)) if device_memory is None else [device_memory] * len(gpus)
    return [
        Device(
            f"node {node}, GPU {[n for n, _, _ in gpus[:index]].count(node)}",
            tuple(process.role for process in processes),
            sum(process.device_bytes for process in processes),
            sizes[index],
        )
        for index, (node, _, processes) in enumerate(gpus)
    ]


def _gpu_memory(count: int) -> list[int | None]:
    """Return the bytes of this machine's first ``count`` GPUs; None for each that PyTorch does not see."""
    import torch

    visible = torch.cuda.device_count()
    return [torch.cuda.get_device_properties(i).total_memory if i < visible else None for i in range(count)]
