"""The error of a codec in the loss gradient of one batch, compared with dense float32."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ray_l4.bench.workload import TASK
from ray_l4.config.cluster import ExchangeConfig
from ray_l4.config.traits import CODECS
from ray_l4.exchange.codecs import Codec, Payload, build_codec
from ray_l4.exchange.collective import Collective
from ray_l4.learner.guard_context import GuardContext
from ray_l4.learner.learner import Learner
from ray_l4.learner.models import build_model, load_bytes
from ray_l4.learner.predictions import Predictions
from ray_l4.losses.targets import Targets
from ray_l4.seeds import derive
from ray_l4.setup.setup import Setup
from ray_l4.workers.rendezvous import RendezvousStore, join

_HERE = "127.0.0.1"
_PATIENCE = 120.0


@dataclass(frozen=True)
class Fidelity:
    """The size of a codec's payload, and the error of the gradient that is learned from it."""

    payload_bytes: int
    relative_error: float
    cosine: float


class Gradients:
    """Gradients of the whole loss (labels and distillation) of student 0 in its first step, learned from all others.

    With dropout, over all parameters, and in this process; a process group of threads reduces ``mean``.
    """

    def __init__(self, setup: Setup) -> None:
        self._experiment = setup.experiment
        self._student, *teachers = (_RecordedStudent(peer, setup) for peer in range(setup.topology.size))
        self._predictions = [own.predictions() for own in (self._student, *teachers)]
        self._exact = self._student.gradient([own.targets() for own in self._predictions[1:]])

    def fidelities(self, exchanges: Sequence[ExchangeConfig]) -> list[Fidelity]:
        """Measure the payload and the gradient error of every exchange."""
        found = []
        for exchange in exchanges:
            codec, seed = build_codec(exchange, self._experiment), self._experiment.seed
            payloads = [codec.encode(own, derive(seed, peer)) for peer, own in enumerate(self._predictions)]
            gradient = self._student.gradient(_read(codec, payloads))
            found.append(Fidelity(payloads[0].num_bytes, *_compare(gradient, self._exact)))
        return found


def _read(codec: Codec, payloads: Sequence[Payload]) -> list[Mapping[str, Targets]]:
    """Decode the targets of student 0."""
    sent = [_mean_of_others(payloads)] if CODECS[payloads[0].codec].reduces else payloads[1:]
    return [codec.decode(payload) for payload in sent]


def _mean_of_others(payloads: Sequence[Payload]) -> Payload:
    """Return what student 0 receives when all peers reduce their payloads together."""
    ranks = {peer: peer for peer in range(len(payloads))}
    store = RendezvousStore.open(_HERE, _PATIENCE)  # kept until all have met
    members = store.members("fidelity", len(ranks))
    device = torch.device("cpu")

    def take_part(peer: int) -> Payload:
        link = Collective(peer, device, join(members[peer], device, _HERE), ranks)
        ticket = link.publish(payloads[peer], [other for other in ranks if other != peer], at_once=False)
        return link.collect([ticket])[0]

    with ThreadPoolExecutor(len(ranks)) as threads:
        of_first, *_ = threads.map(take_part, ranks)
    return of_first


@dataclass
class _GradientRecorder:
    """A guard that changes nothing and records the gradient between the backward pass and the update."""

    recorded: list[Tensor] = field(default_factory=list)

    def restrain(self, context: GuardContext, step: int) -> Tensor:
        self.recorded = [own.grad.clone() for own in context.model.parameters() if own.grad is not None]
        return torch.zeros(())

    def after_stage(self, context: GuardContext) -> None:
        """Nothing to note."""

    def to_bytes(self) -> np.ndarray | None:
        return None

    def restore(self, data: np.ndarray, device: torch.device) -> None:
        """Nothing to restore."""


class _RecordedStudent:
    """A student whose first step can be repeated, with access to its gradient."""

    def __init__(self, peer: int, setup: Setup) -> None:
        seed = derive(setup.experiment.seed, "init", peer)
        model = build_model(setup.experiment.model, setup.tokenizer, seed)
        self._learner = Learner(peer, model, setup.tokenizer, setup.experiment, setup.method)
        self._recorder = self._learner.guard = _GradientRecorder()
        self._tokens = setup.training[TASK]
        self._start = self._learner.weights().copy()

    def predictions(self) -> Predictions:
        return self._learner.begin_stage(0, self._tokens).forward(0)

    def gradient(self, targets: Sequence[Mapping[str, Targets]]) -> list[Tensor]:
        """Compute the gradient of the first step; afterwards the model is as it was."""
        run = self._learner.begin_stage(0, self._tokens)
        run.forward(0, publish=False)
        run.backward(0, targets)
        load_bytes(self._learner.model, self._start)
        return self._recorder.recorded


def _compare(found: Sequence[Tensor], exact: Sequence[Tensor]) -> tuple[float, float]:
    """Return the relative error and the cosine of two gradients, summed in float64 one tensor at a time."""
    sums = torch.zeros(4, dtype=torch.float64)
    for one, other in zip(found, exact, strict=True):
        a, b = one.flatten().double(), other.flatten().double()
        sums += torch.stack([(a - b) @ (a - b), a @ a, b @ b, a @ b])
    difference, own, reference, product = sums.tolist()
    return (difference / reference) ** 0.5, product / (own * reference) ** 0.5
