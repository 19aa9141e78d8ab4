"""Training steps on tensors that have shapes but no data: the memory they take, and the bytes they send.

The learner, its losses, its optimiser and the codec are those of a run. So the memory of any architecture and any
method is counted, not estimated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from typing import Any, cast

import pyarrow as pa
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedModel

from ray_l4.config.cluster import ExchangeConfig
from ray_l4.config.experiment import ExperimentConfig
from ray_l4.exchange.codecs import Codec, Payload, build_codec
from ray_l4.learner.learner import Learner
from ray_l4.learner.packed_attention import fused_dropout
from ray_l4.learner.packing import Arithmetic, runs_packed
from ray_l4.learner.position_logits import PositionLogits, Traits
from ray_l4.learner.pretrained import recompute_activations
from ray_l4.learner.sharding import Alone
from ray_l4.learner.stage_run import StageRun
from ray_l4.losses.chunked import rehearsed_chunks
from ray_l4.methods import get_method, graph_of, peer_experiment, peer_settings
from ray_l4.methods.copying import changed, uncompiled
from ray_l4.planning.attribution import attribute_model, attribute_optimiser
from ray_l4.planning.batch_shape import BatchShape
from ray_l4.planning.gpu_operators import GpuOperators, gpu_contexts, update_together
from ray_l4.planning.memory_trace import MemoryTrace
from ray_l4.planning.meta_models import (
    ParameterCounts,
    Vocabulary,
    count_parameters,
    head_is_one_product,
    meta_model,
)

_STEPS = 2
"""The optimiser creates its moments in the first step; the second has them from its beginning."""


@dataclass(frozen=True)
class SimulatedStep:
    """Memory and traffic of one process with one or several peers."""

    parameters: ParameterCounts
    """Parameters of the last of its peers."""
    tensors: Mapping[str, int]
    """Purpose -> bytes, when their total was largest. Purposes: weights, gradients, optimiser, guard, activations,
    logits, loss, backward, exchange."""
    resident: int
    """Largest number of bytes that the process had from the system for tensors on the CPU, gaps in the heap
    included."""
    between: int
    """The same between two steps: weights, moments, and the part of the heap that is not returned."""
    saved: int
    """Bytes of a checkpoint of one peer."""
    payload: int
    """Bytes that one rank of a peer publishes in a step."""
    received: int
    """Bytes that it reads in a step, from all its teachers together."""


def simulate_step(
    experiment: ExperimentConfig,
    exchange: ExchangeConfig,
    vocabulary: Vocabulary,
    batch: BatchShape,
    peers: Sequence[int],
    *,
    gpu: bool = False,
) -> SimulatedStep:
    """Let ``peers`` of ``experiment``, all in one process, learn batches of this shape without weights or data.

    Raises ModelError if a named model has no configuration.
    """
    num_stages = 2 if get_method(experiment.method).has_guard else 1  # a guard acts from the second stage on
    with ExitStack() as stack:
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(rehearsed_chunks())
        trace = stack.enter_context(MemoryTrace(torch.device("cpu")))
        if gpu:
            stack.enter_context(GpuOperators())
            stack.enter_context(fused_dropout())
        process = _SimulatedProcess(experiment, exchange, vocabulary, batch, peers, trace, gpu)
        payload = max(process.learn_stage(stage) for stage in range(num_stages))
        model = process.learners[peers[-1]].model
        return SimulatedStep(
            parameters=count_parameters(model),
            tensors={purpose: size for purpose, size in trace.peak.items() if size},
            resident=trace.resident,
            between=trace.held,
            saved=sum(p.nbytes for p in model.parameters() if p.requires_grad or not experiment.model.lora),
            payload=payload,
            received=payload * max(len(graph_of(experiment).teachers_of(peer)) for peer in peers),
        )


def extrapolated(fewer: SimulatedStep, more: SimulatedStep, differences: float) -> SimulatedStep:
    """Return the step of a process with so many more equal peers than ``more`` has that what distinguishes it from
    ``fewer`` comes that many ``differences`` times again.

    Memory and traffic grow by the same amount with every peer, as the peers' graphs and payloads are held together.
    """

    def grown(before: int, after: int) -> int:
        return round(after + differences * (after - before))

    return replace(
        more,
        tensors={name: grown(fewer.tensors.get(name, 0), size) for name, size in more.tensors.items()},
        resident=grown(fewer.resident, more.resident),
        between=grown(fewer.between, more.between),
        received=grown(fewer.received, more.received),
    )


class _SimulatedRank(Alone):
    """One rank of a student that takes from its model's structure what it cannot tell from values."""

    def wrap(self, model: PreTrainedModel, arithmetic: Arithmetic = nullcontext) -> PositionLogits:
        traits = Traits(head_is_one_product(model), runs_packed(model))
        return PositionLogits(model, traits=traits, arithmetic=arithmetic)


class _SimulatedProcess:
    """The peers of one process, and their exchange of predictions."""

    def __init__(
        self,
        experiment: ExperimentConfig,
        exchange: ExchangeConfig,
        vocabulary: Vocabulary,
        batch: BatchShape,
        peers: Sequence[int],
        trace: MemoryTrace,
        gpu: bool,
    ) -> None:
        self._trace = trace
        self._exchange = exchange
        self._graph = graph_of(experiment)
        self._asks = experiment.distillation.asks_teachers
        self._answers_itself = experiment.distillation.on_policy > 0
        self._codec: Codec = build_codec(exchange, experiment)
        self._table = batch.table(vocabulary, _STEPS)
        self._gpu = gpu
        self._steps = range(_STEPS if get_method(experiment.method).learns else 0)
        self.learners = {peer: self._learner(experiment, vocabulary, batch, peer) for peer in peers}
        self._runs: dict[int, StageRun] = {}

    def _learner(self, experiment: ExperimentConfig, vocabulary: Vocabulary, batch: BatchShape, peer: int) -> Learner:
        config = uncompiled(_with_batch(peer_experiment(experiment, peer), batch))
        self._trace.begin("weights")
        model = meta_model(config.model, vocabulary, peer_settings(experiment, peer).dropout)
        if self._gpu and config.model.gradient_checkpointing:
            recompute_activations(model, gpu_contexts)
        method, rank = get_method(config.method), _SimulatedRank(size=batch.ranks)
        learner = Learner(peer, model, cast(Any, vocabulary), config, method, rank, batch.micro_batch)
        attribute_model(model, self._trace)
        return learner

    def learn_stage(self, stage: int) -> int:
        """Let all peers learn a stage; return the bytes of a payload, 0 if nobody publishes.

        What the guards keep of the stage stays in memory for the next one.
        """
        for learner in self.learners.values():
            # A guard that learns knows nothing yet of what was stored before the first stage.
            memory = self._table if stage or not learner.method.guard_learns else None
            run = self._runs[learner.peer] = learner.begin_stage(stage, self._table, memory)
            run.answer = self._answer
            attribute_optimiser(run.optimizer, self._trace)
            if self._gpu:
                update_together(run.optimizer)
        payload = max((self._step(step) for step in self._steps), default=0)
        for learner in self.learners.values():
            if learner.guard is not None:
                self._runs[learner.peer].consolidate()
                for purpose in ("activations", "loss", "backward"):
                    self._trace.rename(purpose, "guard")
        return payload

    def _answer(self, step: int) -> pa.Table | None:
        """Return the examples of a step as if the students had given these answers themselves."""
        if not self._answers_itself:
            return None
        rows = next(iter(self._runs.values())).sampler.indices(step)
        table = self._table.take(pa.array(rows))
        origin = pa.array(["answered"] * table.num_rows)
        return table.set_column(table.schema.get_field_index("origin"), "origin", origin)

    def _step(self, step: int) -> int:
        """Run one step of all peers; return the bytes of a payload."""
        trace, graph = self._trace, self._graph
        publish, num_bytes = bool(graph.edges) and not self._asks, 0
        sent: dict[int, Payload] = {}
        for peer, run in self._runs.items():
            if peer not in graph.frozen:
                trace.begin("activations")
                predictions = run.forward(step, publish=publish)
                if publish:
                    trace.begin("exchange")
                    sent[peer] = self._codec.encode(predictions, 0)
                    num_bytes = sent[peer].num_bytes
                del predictions
        for peer, run in self._runs.items():
            # All students' batches have the same shape, so the prediction of one stands for those of all.
            if peer in graph.frozen or (self._asks and graph.teaches(peer)):
                trace.begin("activations")
                predictions = run.predict(step, graph.students[0], run.answer(step))
                trace.begin("exchange")
                sent[peer] = self._codec.encode(predictions, 0)
                num_bytes = sent[peer].num_bytes
                del predictions
        arrived = {
            peer: [sent.get(teacher) or _copy(sent[peer]) for teacher in graph.teachers_of(peer)]
            for peer in self.learners
            if peer not in graph.frozen
        }
        if self._exchange.transport_traits.through_object_store:
            sent.clear()  # returned by the call that made it; with all other links the peer still holds it
        for peer, payloads in arrived.items():
            trace.begin("loss")
            self._runs[peer].backward(step, [self._codec.decode(payload) for payload in payloads])
        return num_bytes


def _copy(payload: Payload) -> Payload:
    """Return a copy of ``payload``, which stands for the payload of a peer in another process."""
    return replace(payload, tensors={name: tensor.clone() for name, tensor in payload.tensors.items()})


def _with_batch(experiment: ExperimentConfig, batch: BatchShape) -> ExperimentConfig:
    """Return the experiment with batches of this size, guards that look at one example, whose memory is the same as
    that of many, and a memory that holds all examples of the plan."""
    training = changed(experiment.training, batch_size=batch.examples, batch_budget=None, epochs=1)
    replay = changed(experiment.replay, capacity=None)
    return changed(
        experiment, training=training, replay=replay, regulariser=changed(experiment.regulariser, examples=1)
    )
