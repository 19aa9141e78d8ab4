"""What every process of a run needs: on its device, and of its host's memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ray_l4.config.cluster import ClusterConfig
from ray_l4.config.experiment import ExperimentConfig
from ray_l4.methods import Topology, graph_of, peer_experiment
from ray_l4.planning.batch_shape import BatchShape
from ray_l4.planning.decoding_memory import Decoding, rehearse_decoding
from ray_l4.planning.meta_models import vocabulary
from ray_l4.planning.process_baselines import GPU_CONTEXT, GPU_HOST, LEARNER_PROCESS, RAY_WORKER, SERIALISED
from ray_l4.planning.simulated_step import Rehearsal, rehearse

COORDINATION = "coordination"
"""Role of the coordinator and of the command line."""

_FLOAT32 = 4


@dataclass(frozen=True)
class Process:
    """One kind of process."""

    role: str
    """``student 0``, ``teacher``, ``evaluator``, ``coordination``, or ``everyone`` in one process."""
    count: int
    """Of them, each with as much."""
    gpu: bool
    """Whether its device is a GPU; otherwise all it needs is memory of its node."""
    device: Mapping[str, int]
    """Bytes by purpose at its peak; on the GPU if it has one."""
    host: int
    """Bytes of its node's memory, all of them if it has no GPU."""

    @property
    def device_bytes(self) -> int:
        """Bytes on its device at its peak."""
        return sum(self.device.values())


@dataclass(frozen=True)
class Needs:
    """What a run needs."""

    batch: BatchShape
    parameters: int
    """Of the largest peer; tied ones count once."""
    trainable: int
    """Of those, how many training moves."""
    published: int
    """Bytes that one rank of a student publishes in a step."""
    received: int
    """Bytes that one rank reads in a step, of the student with most teachers."""
    object_store: int
    """Bytes of shared memory for what is on its way at the same time, and for one checkpoint of every peer."""
    processes: tuple[Process, ...]
    """Peers in order (each ``count`` is its ranks), then evaluators, then those that reserve nothing."""


class Planner:
    """Needs of one experiment's runs on any profile. What was rehearsed once is kept, for profiles differ in little."""

    def __init__(self) -> None:
        self._rehearsed: dict[str, Rehearsal] = {}
        self._decoded: dict[str, Decoding] = {}

    def needs(self, experiment: ExperimentConfig, cluster: ClusterConfig, batch: BatchShape) -> Needs:
        """What a run of ``experiment`` (``methods.resolved``) on ``cluster`` needs, from both configurations alone.

        Raises ModelError if a named model has no configuration, ConfigError for a codec that cannot serve it.
        """
        graph, exchange = graph_of(experiment), cluster.exchange
        one_process = exchange.transport == "in_process"
        groups = [tuple(range(graph.size))] if one_process else [(peer,) for peer in range(graph.size)]
        seen = {peers: self._rehearse(experiment, cluster, batch, peers) for peers in groups}
        decoding = self._decode(experiment, batch)
        if one_process:
            processes = [_everyone(seen[groups[0]], decoding, cluster)]
        else:
            processes = [_rank(peers[0], graph, own, cluster) for peers, own in seen.items()]
            processes += [_evaluator(decoding, cluster), _COORDINATION]
        teaching = [own for peers, own in seen.items() if any(map(graph.teaches, peers))]
        published = max((own.payload for own in teaching), default=0)
        received = max(own.received for own in seen.values())
        on_the_way = graph.size * batch.shards * published * (exchange.steps_ahead + 2)
        weights = sum(own.saved for own in seen.values())
        return Needs(
            batch=batch,
            parameters=max(own.parameters.total for own in seen.values()),
            trainable=max(own.parameters.trainable for own in seen.values()),
            published=published,
            received=received,
            object_store=0 if one_process else weights + on_the_way * (exchange.transport == "object_store"),
            processes=tuple(process for process in processes if process.count),
        )

    def _rehearse(
        self, experiment: ExperimentConfig, cluster: ClusterConfig, batch: BatchShape, peers: tuple[int, ...]
    ) -> Rehearsal:
        graph = graph_of(experiment)
        traits = [
            (peer in graph.frozen, len(graph.teachers_of(peer)), peer_experiment(experiment, peer).model.model_dump())
            for peer in peers
        ]
        gpu = cluster.students.gpus > 0
        key = repr((traits, experiment.model_dump(), cluster.exchange, batch, gpu))
        if key not in self._rehearsed:
            tokens = vocabulary(experiment)
            self._rehearsed[key] = rehearse(experiment, cluster.exchange, tokens, batch, peers, gpu=gpu)
        return self._rehearsed[key]

    def _decode(self, experiment: ExperimentConfig, batch: BatchShape) -> Decoding:
        key = repr((experiment.model_dump(), batch.length))
        if key not in self._decoded:
            self._decoded[key] = rehearse_decoding(experiment, vocabulary(experiment), batch.length)
        return self._decoded[key]


_COORDINATION = Process(COORDINATION, 2, False, {"process": RAY_WORKER}, RAY_WORKER)


def _rank(peer: int, graph: Topology, own: Rehearsal, cluster: ClusterConfig) -> Process:
    """One rank of a peer."""
    role = "teacher" if peer in graph.frozen else f"student {peer}"
    students = cluster.students
    tensors = _sharded(own, students.shards_per_student) if students.sharding == "full" else own.tensors
    if students.gpus > 0:
        host = GPU_HOST + SERIALISED * own.saved + own.payload + own.received
        return Process(role, students.shards_per_student, True, {**tensors, "process": GPU_CONTEXT}, host)
    return _on_cpu(role, students.shards_per_student, tensors, own)


def checkpoint_and_step(own: Rehearsal) -> int:
    """Bytes that a process on a CPU has from the machine for a peer: in a step, or when it writes a checkpoint."""
    return max(own.resident, own.between + SERIALISED * own.saved)


def _on_cpu(role: str, count: int, tensors: Mapping[str, int], own: Rehearsal) -> Process:
    """A process whose device is its node's memory."""
    share = sum(tensors.values()) / sum(own.tensors.values())
    gaps = round((own.resident - sum(own.tensors.values())) * share)
    # Its pages of the object store count as its own: those of the checkpoint, once it is written.
    writing = round((checkpoint_and_step(own) - own.resident) * share) + own.saved
    parts = {**tensors, "heap": gaps, "checkpoint": writing, "process": RAY_WORKER}
    return Process(role, count, False, {name: size for name, size in parts.items() if size}, sum(parts.values()))


def _sharded(own: Rehearsal, ranks: int) -> dict[str, int]:
    """A rank's slice of what FSDP2 divides, and the layers that are whole while they are at work.

    Those are the embeddings and one layer, with their gradients, and the weights of the layer that is fetched next.
    """
    divided = {"weights", "gradients", "optimiser"} if ranks > 1 else set()
    tensors = {name: -(-size // ranks) if name in divided else size for name, size in own.tensors.items()}
    counted = own.parameters
    gathered = _FLOAT32 * (2 * counted.outside_blocks + 3 * counted.largest_block) if ranks > 1 else 0
    return tensors | ({"gathered": gathered} if gathered else {})


def _everyone(own: Rehearsal, decoding: Decoding, cluster: ClusterConfig) -> Process:
    """All peers and evaluators in one process: a step beside the evaluators' models, or their work beside the peers."""
    idle = cluster.evaluators.count * decoding.tensors["weights"]
    both = max(own.resident + idle, own.between + decoding.resident + idle - decoding.tensors["weights"])
    gaps = own.resident - sum(own.tensors.values())
    rest = both - own.resident
    parts = {**own.tensors, "evaluators": rest, "heap": gaps, "process": LEARNER_PROCESS}
    return Process("everyone", 1, False, parts, sum(parts.values()))


def _evaluator(decoding: Decoding, cluster: ClusterConfig) -> Process:
    """Reading a batch, or loading a checkpoint: bytes, and tensors made of them, beside the model."""
    evaluators = cluster.evaluators
    loading = decoding.tensors["weights"] * 2
    if evaluators.gpus > 0:
        return Process(
            "evaluator", evaluators.count, True, {**decoding.tensors, "process": GPU_CONTEXT}, GPU_HOST + loading
        )
    gaps = max(decoding.resident - sum(decoding.tensors.values()), loading - decoding.tensors["cache"], 0)
    parts = {**decoding.tensors, "heap": gaps, "process": RAY_WORKER}
    return Process("evaluator", evaluators.count, False, parts, sum(parts.values()))
