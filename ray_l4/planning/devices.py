"""Which process goes to which device, what that comes to there, and whether the device holds it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from ray_l4.cluster.placement import bundles, check_room, local_resources
from ray_l4.config.cluster import ClusterConfig
from ray_l4.errors import ClusterError
from ray_l4.planning.process_baselines import RAY_ITSELF
from ray_l4.planning.processes import COORDINATION, Needs, Process

_ROUNDING = 1e-6
"""Fractions of a GPU add up only nearly."""


@dataclass(frozen=True)
class Device:
    """A GPU, or a node's main memory, and what a run puts there."""

    name: str
    holds: tuple[str, ...]
    """Roles of the processes, one entry for each."""
    needed: int
    """Bytes."""
    there: int | None
    """Bytes; None if nobody has said how much it has."""

    @property
    def fits(self) -> bool:
        """Whether it has enough; unknown counts as enough."""
        return self.there is None or self.needed <= self.there


def node_memory() -> int:
    """Bytes of main memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def devices_of(needs: Needs, peers: int, cluster: ClusterConfig, memory: int | None) -> list[Device]:
    """The devices of a run, each with its load.

    memory: bytes of each of them (of every GPU where students use some, else of every node's main memory), where the
    plan is not for this machine: then there are as many as it takes. When not given, those of this machine.
    Raises ClusterError if this machine has no room for the processes, or if the profile is for another cluster.
    """
    placed, homeless = _reserved(needs, cluster)
    nodes = [0] * len(placed) if cluster.exchange.transport == "in_process" else _nodes(peers, cluster, memory)
    nodes = nodes[: len(placed)] + [0] * (len(placed) - len(nodes))
    everywhere = sorted({*nodes, 0})
    gpus = _gpus([(p, n) for p, n in zip(placed, nodes, strict=True) if p.gpu], cluster, memory)
    of_nodes = memory if not gpus and memory is not None else None if memory is not None else node_memory()
    mains = []
    for node in everywhere:
        here = [process for process, own in zip(placed, nodes, strict=True) if own == node]
        here += homeless if node == 0 else []
        ray = 0 if cluster.exchange.transport == "in_process" else RAY_ITSELF + needs.object_store
        load = sum(process.host for process in here) + ray
        mains.append(Device(f"node {node}, main memory", tuple(p.role for p in here), load, of_nodes))
    return [*gpus, *mains]


def _reserved(needs: Needs, cluster: ClusterConfig) -> tuple[list[Process], list[Process]]:
    """Processes one by one: those with a place of their own, in the order of the bundles, and all others."""
    each = [process for process in needs.processes for _ in range(process.count)]
    if cluster.exchange.transport == "in_process":
        return each, []
    free = {COORDINATION} | (set() if cluster.evaluators.cpus or cluster.evaluators.gpus else {"evaluator"})
    return [p for p in each if p.role not in free], [p for p in each if p.role in free]


def _nodes(peers: int, cluster: ClusterConfig, memory: int | None) -> list[int]:
    """The node of every bundle: of this machine, or of as many nodes as the strategy asks for."""
    if memory is None:
        if cluster.ray.address is not None:
            raise ClusterError(
                f"ray.address: {cluster.ray.address} is another cluster, whose memory is not known here; say how much "
                "every device has: --device-memory 80GiB"
            )
        return check_room(peers, cluster, [local_resources(cluster)])
    count = len(bundles(peers, cluster))
    return list(range(count)) if "SPREAD" in cluster.placement.strategy else [0] * count


def _gpus(placed: Sequence[tuple[Process, int]], cluster: ClusterConfig, memory: int | None) -> list[Device]:
    """Every GPU with its processes: a share goes to the first GPU of its node with room, whole ones to new GPUs."""
    shares = {"evaluator": cluster.evaluators.gpus}
    held: list[tuple[int, float, list[Process]]] = []
    for process, node in placed:
        share = shares.get(process.role, cluster.students.gpus)
        index = next((i for i, (n, left, _) in enumerate(held) if n == node and left + _ROUNDING >= share), None)
        if share < 1 and index is not None:
            own, left, others = held[index]
            held[index] = (own, left - share, [*others, process])
        else:
            held.append((node, max(0.0, 1 - share), [process]))
    sizes = _gpu_memory(len(held)) if memory is None else [memory] * len(held)
    return [
        Device(
            f"node {node}, GPU {[n for n, _, _ in held[:index]].count(node)}",
            tuple(process.role for process in processes),
            sum(process.device_bytes for process in processes),
            sizes[index],
        )
        for index, (node, _, processes) in enumerate(held)
    ]


def _gpu_memory(wanted: int) -> list[int | None]:
    """Bytes of this machine's GPUs; None for one that PyTorch does not see."""
    import torch

    there = torch.cuda.device_count()
    return [torch.cuda.get_device_properties(i).total_memory if i < there else None for i in range(wanted)]
