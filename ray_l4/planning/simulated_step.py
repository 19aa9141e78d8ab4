"""A training step as it will be, on tensors that have shapes and no data: what it holds in memory, and what it sends.

The learner, its losses, its optimiser and the codec are the real ones. So whatever the architecture and the method are,
what they keep is counted and not estimated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from ray_l4.config.cluster import ExchangeConfig
from ray_l4.config.experiment import ExperimentConfig
from ray_l4.exchange.codecs import Codec, Payload, build_codec
from ray_l4.learner.learner import Learner
from ray_l4.learner.sharding import Alone
from ray_l4.learner.stage_run import StageRun
from ray_l4.methods import get_method, graph_of, peer_experiment, peer_settings
from ray_l4.methods.copying import changed
from ray_l4.planning.batch_shape import BatchShape
from ray_l4.planning.memory_trace import Ledger
from ray_l4.planning.meta_models import Parameters, Vocabulary, blank_student, count_parameters, head_is_one_product

_STEPS = 2
"""The first step makes the moments, the second has them from its beginning."""


@dataclass(frozen=True)
class Rehearsal:
    """One process with one or several peers."""

    parameters: Parameters
    """Of the last of its peers."""
    tensors: Mapping[str, int]
    """Bytes by purpose when they were most: weights, gradients, optimiser, activations, logits, loss, backward,
    exchange."""
    resident: int
    """Bytes that the process had from the machine at most for tensors on the CPU, gaps in the heap included."""
    between: int
    """Bytes that it has between two steps, likewise: weights, moments, and what the heap does not give back."""
    saved: int
    """Bytes of a checkpoint of one peer."""
    payload: int
    """Bytes that one rank of a peer publishes in a step."""
    received: int
    """Bytes that it reads, of all its teachers together."""


class _AsOnGpu(TorchFunctionMode):
    """Attention and dropout as GPUs have them: one without the matrix of weights, the other with a mask of one byte."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = dict(kwargs or {})
        if func is functional.scaled_dot_product_attention:
            options["dropout_p"] = 0.0
        if func is functional.dropout:
            return _masked_dropout(*args, **options)
        return func(*args, **options)


def _masked_dropout(values: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    return torch.native_dropout(values, p, True)[0] if training and p > 0 else values


def rehearse(
    experiment: ExperimentConfig,
    exchange: ExchangeConfig,
    tokens: Vocabulary,
    batch: BatchShape,
    peers: Sequence[int],
    *,
    gpu: bool = False,
) -> Rehearsal:
    """Let ``peers`` of ``experiment``, all in one process, learn batches of this shape, without weights and data.

    Raises ModelError if a named model has no configuration.
    """
    with ExitStack() as stack:
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        ledger = stack.enter_context(Ledger(torch.device("cpu")))
        if gpu:
            stack.enter_context(_AsOnGpu())
        stage = _Stage(experiment, exchange, tokens, batch, peers, ledger, gpu)
        for number in range(2 if get_method(experiment.method).guard != "none" else 1):
            stage.learn(number)
        learner = stage.learners[peers[-1]]
        trained = sum(p.nbytes for p in learner.model.parameters() if p.requires_grad or not experiment.model.lora)
        return Rehearsal(
            count_parameters(learner.model),
            {purpose: size for purpose, size in ledger.peak.items() if size},
            ledger.resident,
            ledger.held,
            trained,
            stage.sent_bytes,
            stage.sent_bytes * stage.most_teachers,
        )


class _Stage:
    """The peers of a process and what they do with each other."""

    def __init__(
        self,
        experiment: ExperimentConfig,
        exchange: ExchangeConfig,
        tokens: Vocabulary,
        batch: BatchShape,
        peers: Sequence[int],
        ledger: Ledger,
        gpu: bool,
    ) -> None:
        self._ledger = ledger
        self._exchange = exchange
        self._graph = graph_of(experiment)
        self._codec: Codec = build_codec(exchange, experiment)
        self._table = batch.table(tokens, _STEPS)
        self._gpu = gpu
        self.most_teachers = max((len(self._graph.teachers_of(peer)) for peer in peers), default=0)
        self.sent_bytes = 0
        self.learners = {peer: self._learner(experiment, tokens, batch, peer) for peer in peers}
        self._runs: dict[int, StageRun] = {}

    def _learner(self, experiment: ExperimentConfig, tokens: Vocabulary, batch: BatchShape, peer: int) -> Learner:
        own = _cut(peer_experiment(experiment, peer), batch)
        ledger = self._ledger
        ledger.begin("weights")
        model = blank_student(own.model, tokens, peer_settings(experiment, peer).dropout)
        ledger.answer = float(head_is_one_product(model))  # the one question that a learner asks of values
        method, ranks = get_method(own.method), Alone(size=batch.shards)
        learner = Learner(peer, model, cast(Any, tokens), own, method, ranks, batch.micro_batch)
        ledger.answer = 1.0
        _watch(model, ledger)
        return learner

    def learn(self, number: int) -> None:
        """A stage; what a guard keeps of it is there in the next."""
        for learner in self.learners.values():
            run = self._runs[learner.peer] = learner.begin_stage(number, self._table, self._table)
            optimizer = run.optimizer
            optimizer.register_step_pre_hook(lambda *_: self._ledger.begin("optimiser"))
            optimizer.register_step_post_hook(lambda *_: self._ledger.begin("loss"))
            for group in optimizer.param_groups:
                if self._gpu and "foreach" in group:
                    group["foreach"] = True  # PyTorch's choice there: faster, with more working memory
        for step in range(_STEPS):
            self._step(step)
        for learner in self.learners.values():
            if learner.guard is not None:
                self._runs[learner.peer].consolidate()
                for purpose in ("activations", "loss", "backward"):
                    self._ledger.rename(purpose, "guard")

    def _step(self, step: int) -> None:
        ledger, graph = self._ledger, self._graph
        talk = bool(graph.edges)
        sent: dict[int, Payload] = {}
        for peer, run in self._runs.items():
            ledger.begin("activations")
            frozen = peer in graph.frozen
            predictions = run.predict(step, 0) if frozen else run.forward(step, publish=talk)
            ledger.begin("exchange")
            if talk:
                sent[peer] = self._codec.encode(predictions, 0)
                self.sent_bytes = sent[peer].num_bytes
            del predictions
        arrived = {
            peer: [sent.get(teacher) or _like(sent[peer]) for teacher in graph.teachers_of(peer)]
            for peer in self.learners
            if peer not in graph.frozen
        }
        if self._exchange.transport == "object_store":
            sent.clear()  # it left as the answer to the call; by all other ways the peer still holds it
        for peer, payloads in arrived.items():
            ledger.begin("loss")
            self._runs[peer].backward(step, [self._codec.decode(payload) for payload in payloads])


def _like(payload: Payload) -> Payload:
    """Another peer's payload: as large as one's own."""
    return replace(payload, tensors={name: tensor.clone() for name, tensor in payload.tensors.items()})


def _cut(experiment: ExperimentConfig, batch: BatchShape) -> ExperimentConfig:
    """The experiment with batches of this many examples; one is enough to see what a guard keeps."""
    training = changed(experiment.training, batch_size=batch.examples, batch_budget=None, epochs=1)
    return changed(experiment, training=training, regulariser=changed(experiment.regulariser, examples=1))


def _watch(model: Any, ledger: Ledger) -> None:
    """Tell the ledger what memory serves, as the model goes forward and backward."""

    def after_head(module: nn.Module, inputs: Any, logits: Tensor) -> None:
        ledger.assign(logits, "logits")
        ledger.begin("loss")
        if logits.requires_grad:
            logits.register_hook(lambda gradient: ledger.begin("backward"))

    model.base_model.register_forward_pre_hook(lambda *_: ledger.begin("activations"))
    model.get_output_embeddings().register_forward_hook(after_head)
    for parameter in model.parameters():
        ledger.assign(parameter, "weights")
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda own: ledger.assign(own.grad, "gradients"))
