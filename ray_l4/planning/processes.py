"""The processes of a run, each with the memory that it needs on its device and of its host."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ray_l4.config.cluster import ClusterConfig
from ray_l4.methods import Topology
from ray_l4.planning.decoding_memory import DecodingMemory
from ray_l4.planning.process_baselines import CHECKPOINT_COPIES, GPU_CONTEXT, GPU_HOST, LEARNER_PROCESS, RAY_WORKER
from ray_l4.planning.simulated_step import SimulatedStep

COORDINATION = "coordination"
"""Role of the coordinator and of the command line."""

_FLOAT32_BYTES = 4


@dataclass(frozen=True)
class Process:
    """One kind of process."""

    role: str
    """``student 0``, ``teacher``, ``evaluator``, ``coordination``, or ``everyone`` in one process."""
    count: int
    """Processes of this kind."""
    gpu: bool
    """True if its device is a GPU, False if its device is its node's main memory."""
    device: Mapping[str, int]
    """Purpose -> bytes on its device, at its peak."""
    host: int
    """Bytes of its node's main memory; without a GPU, the sum of ``device``."""

    @property
    def device_bytes(self) -> int:
        """Bytes on its device at its peak."""
        return sum(self.device.values())


COORDINATION_PROCESSES = Process(COORDINATION, 2, False, {"process": RAY_WORKER}, RAY_WORKER)


def rank_process(peer: int, graph: Topology, step: SimulatedStep, cluster: ClusterConfig) -> Process:
    """Return the process of one rank of ``peer``."""
    role = "teacher" if peer in graph.frozen else f"student {peer}"
    students = cluster.students
    tensors = _sharded(step, students.shards_per_student) if students.sharding == "full" else step.tensors
    if students.gpus > 0:
        host = GPU_HOST + CHECKPOINT_COPIES * step.saved + step.payload + step.received
        return Process(role, students.shards_per_student, True, {**tensors, "process": GPU_CONTEXT}, host)
    return _on_cpu(role, students.shards_per_student, tensors, step)


def step_or_checkpoint_bytes(step: SimulatedStep) -> int:
    """Return the bytes that the tensors of a process on a CPU take from the system: in a step, or while it writes a
    checkpoint, whichever is more."""
    return max(step.resident, step.between + CHECKPOINT_COPIES * step.saved)


def _on_cpu(role: str, count: int, tensors: Mapping[str, int], step: SimulatedStep) -> Process:
    """Return a process whose device is its node's main memory."""
    share = sum(tensors.values()) / sum(step.tensors.values())
    gaps = round((step.resident - sum(step.tensors.values())) * share)
    # Pages of the object store that it has written to are part of its resident memory: those of its checkpoint.
    writing = round((step_or_checkpoint_bytes(step) - step.resident) * share) + step.saved
    parts = {**tensors, "heap": gaps, "checkpoint": writing, "process": RAY_WORKER}
    return Process(role, count, False, {name: size for name, size in parts.items() if size}, sum(parts.values()))


def _sharded(step: SimulatedStep, ranks: int) -> dict[str, int]:
    """Return the bytes by purpose of one rank under FSDP2: its slices, and the layers that are gathered at the time.

    Gathered are the embeddings and one layer with their gradients, and the weights of the layer that is fetched next.
    """
    divided = {"weights", "gradients", "optimiser"} if ranks > 1 else set()
    tensors = {name: -(-size // ranks) if name in divided else size for name, size in step.tensors.items()}
    counts = step.parameters
    gathered = _FLOAT32_BYTES * (2 * counts.outside_blocks + 3 * counts.largest_block) if ranks > 1 else 0
    return tensors | ({"gathered": gathered} if gathered else {})


def one_process(step: SimulatedStep, decoding: DecodingMemory, cluster: ClusterConfig) -> Process:
    """Return the process that holds all peers and evaluators: at its peak either the peers train while the evaluators
    hold their models, or an evaluator decodes while the peers rest between two steps."""
    models = cluster.evaluators.count * decoding.tensors["weights"]
    peak = max(step.resident + models, step.between + decoding.resident + models - decoding.tensors["weights"])
    gaps = step.resident - sum(step.tensors.values())
    parts = {
        **step.tensors,
        "evaluators": peak - step.resident,
        "heap": gaps,
        "process": LEARNER_PROCESS,
    }
    return Process("everyone", 1, False, parts, sum(parts.values()))


def evaluator_process(decoding: DecodingMemory, cluster: ClusterConfig) -> Process:
    """Return an evaluator: at its peak it decodes a batch, or loads a checkpoint as bytes and tensors beside its
    model."""
    evaluators = cluster.evaluators
    loading = decoding.tensors["weights"] * 2
    if evaluators.gpus > 0:
        return Process(
            "evaluator", evaluators.count, True, {**decoding.tensors, "process": GPU_CONTEXT}, GPU_HOST + loading
        )
    gaps = max(decoding.resident - sum(decoding.tensors.values()), loading - decoding.tensors["cache"], 0)
    parts = {**decoding.tensors, "heap": gaps, "process": RAY_WORKER}
    return Process("evaluator", evaluators.count, False, parts, sum(parts.values()))
