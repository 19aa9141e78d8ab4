"""The requirements of a run: its processes with their memory, the bytes it exchanges, and the object store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ray_l4.config.cluster import ClusterConfig, ExchangeConfig
from ray_l4.config.experiment import ExperimentConfig
from ray_l4.methods import graph_of, peer_experiment
from ray_l4.methods.copying import changed
from ray_l4.planning.batch_shape import BatchShape
from ray_l4.planning.decoding_memory import DecodingMemory, simulate_decoding
from ray_l4.planning.meta_models import vocabulary_of
from ray_l4.planning.processes import (
    COORDINATION_PROCESSES,
    Process,
    evaluator_process,
    one_process,
    rank_process,
)
from ray_l4.planning.simulated_step import SimulatedStep, extrapolated, simulate_step
from ray_l4.setup.own_batches import with_batches

_FEW = (6, 8)
"""Numbers of equal peers that are simulated in the place of more."""


@dataclass(frozen=True)
class Requirements:
    """Everything that a run requires."""

    batch: BatchShape
    parameters: int
    """Parameters of the largest peer; tied ones count once."""
    trainable: int
    """Parameters of that peer that training updates."""
    published: int
    """Bytes that one rank of a student publishes in a step."""
    received: int
    """Bytes that one rank reads in a step, for the student with most teachers."""
    object_store: int
    """Bytes of shared memory: the payloads that are stored at the same time, and one checkpoint of every peer."""
    processes: tuple[Process, ...]
    """Peers in order (``count`` is the number of their ranks), then evaluators, then processes without a bundle."""
    checkpoint: int = 0
    """Bytes of the largest peer's checkpoint."""


class Estimator:
    """Estimates the requirements of runs. It keeps its simulations, since most profiles and settings share them."""

    def __init__(self, tell: Callable[[str], None] = lambda line: None) -> None:
        """``tell`` is given a line before every simulation."""
        self._tell = tell
        self._steps: dict[str, SimulatedStep] = {}
        self._decoding: dict[str, DecodingMemory] = {}

    def requirements(self, experiment: ExperimentConfig, cluster: ClusterConfig, batch: BatchShape) -> Requirements:
        """Return what a run of ``experiment`` (with ``methods.resolved``) on ``cluster`` requires.

        Raises ModelError if a named model has no configuration, ConfigError for a codec that cannot serve the method.
        """
        experiment = with_batches(experiment)
        graph, exchange = graph_of(experiment), cluster.exchange
        in_process = exchange.transport_traits.in_one_process
        groups = [tuple(range(graph.size))] if in_process else [(peer,) for peer in range(graph.size)]
        steps = {peers: self._step(experiment, cluster, batch, peers) for peers in groups}
        decoding = self._decode(experiment, batch, cluster.evaluators.gpus > 0)
        if in_process:
            processes = [one_process(steps[groups[0]], decoding, cluster)]
        else:
            processes = [rank_process(peers[0], graph, step, cluster) for peers, step in steps.items()]
            processes += [evaluator_process(decoding, cluster), COORDINATION_PROCESSES]
        teaching = [step for peers, step in steps.items() if any(map(graph.teaches, peers))]
        published = max((step.payload for step in teaching), default=0)
        payloads = len(graph.edges) if experiment.distillation.asks_teachers else graph.size
        stored = payloads * batch.ranks * published * (exchange.steps_ahead + 2)
        checkpoints = sum(step.saved for step in steps.values())
        return Requirements(
            batch=batch,
            parameters=max(step.parameters.total for step in steps.values()),
            trainable=max(step.parameters.trainable for step in steps.values()),
            published=published,
            received=max(step.received for step in steps.values()),
            object_store=0 if in_process else checkpoints + stored * exchange.transport_traits.through_object_store,
            processes=tuple(process for process in processes if process.count),
            checkpoint=max(step.saved for step in steps.values()),
        )

    def _step(
        self, experiment: ExperimentConfig, cluster: ClusterConfig, batch: BatchShape, peers: tuple[int, ...]
    ) -> SimulatedStep:
        graph = graph_of(experiment)
        traits = [
            (peer in graph.frozen, len(graph.teachers_of(peer)), peer_experiment(experiment, peer).model.model_dump())
            for peer in peers
        ]
        gpu = cluster.students.gpus > 0
        # Of the exchange, what decides which tensors there are, so that profiles of equal shape share one simulation.
        exchange = cluster.exchange.model_dump(exclude={"transport", "steps_ahead"})
        stored = cluster.exchange.transport_traits.through_object_store
        key = repr((traits, _shape(experiment), exchange, stored, batch, gpu))
        if key not in self._steps:
            who = f"{len(peers)} peers" if len(peers) > 3 else "peer " + " and ".join(map(str, peers))
            self._tell(
                f"a step of {who}: {batch.examples} examples, {batch.at_once} at a time, of {batch.length} "
                f"tokens, on a {'GPU' if gpu else 'CPU'}, codec {cluster.exchange.codec}"
            )
            self._steps[key] = _simulated(experiment, cluster.exchange, batch, peers, gpu)
        return self._steps[key]

    def _decode(self, experiment: ExperimentConfig, batch: BatchShape, gpu: bool) -> DecodingMemory:
        length = batch.decoded or batch.length
        key = repr((_shape(experiment), length, gpu))
        if key not in self._decoding:
            self._tell(f"an evaluator: {length} tokens")
            self._decoding[key] = simulate_decoding(experiment, vocabulary_of(experiment), length, gpu=gpu)
        return self._decoding[key]


def _simulated(
    experiment: ExperimentConfig, exchange: ExchangeConfig, batch: BatchShape, peers: tuple[int, ...], gpu: bool
) -> SimulatedStep:
    """Simulate a step of ``peers`` in one process; of many equal ones, steps of a few, from which it follows."""
    own, vocabulary = experiment.peers, vocabulary_of(experiment)
    if len(peers) <= _FEW[1] or own.each or not isinstance(own.topology, str | None):
        return simulate_step(experiment, exchange, vocabulary, batch, peers, gpu=gpu)
    few = [changed(experiment, peers=changed(own, count=count)) for count in _FEW]
    sizes = [graph_of(each).size for each in few]  # with a teacher that does not learn, one more
    fewer, more = (
        simulate_step(each, exchange, vocabulary, batch, tuple(range(size)), gpu=gpu)
        for each, size in zip(few, sizes, strict=True)
    )
    return extrapolated(fewer, more, (len(peers) - sizes[1]) / (sizes[1] - sizes[0]))


def _shape(experiment: ExperimentConfig) -> object:
    """Return the settings on which it depends which tensors there are; those of a sweep are, as a rule, others."""
    return experiment.model_dump(
        exclude={
            "name": True,
            "variant": True,
            "seed": True,
            "training": {"epochs"},
            "optim": {"lr", "beta1", "beta2", "eps", "warmup"},
            "checkpoint": True,
        }
    )
