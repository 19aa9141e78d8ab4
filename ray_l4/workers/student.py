"""A student: a learner and the codec by which it speaks to its peers. An actor on Ray, a plain object without."""

from __future__ import annotations

import resource
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from ray.util import get_node_ip_address

from ray_l4.config.cluster import ClusterConfig, Resources
from ray_l4.errors import PeerError
from ray_l4.exchange.codecs import Payload, build_codec
from ray_l4.exchange.collective import Collective
from ray_l4.exchange.device_buffers import cuda_link
from ray_l4.exchange.links import ByReference, Link, Ticket
from ray_l4.learner.learner import Learner
from ray_l4.learner.models import build_model, describe, pick_device
from ray_l4.learner.predictions import Predictions
from ray_l4.methods import peer_experiment, peer_seed, peer_settings
from ray_l4.seeds import derive
from ray_l4.setup.setup import Setup
from ray_l4.workers.ranks import fellow_ranks, unite
from ray_l4.workers.rendezvous import Meeting, join


class Student:
    """Calls arrive in order. One that belongs to an older generation, or is not the next step, is refused."""

    def __init__(self, peer: int, setup: Setup, cluster: ClusterConfig, shard: int = 0) -> None:
        """``shard``: which of the student's ranks this is."""
        self.peer = peer
        self._shard = shard
        self._setup = setup
        self._resources = cluster.students
        self._exchange = cluster.exchange
        self._codec = build_codec(cluster.exchange, peer_experiment(setup.experiment, peer))
        self._generation = 0
        self._times: dict[str, float] = {}

    def start(self, meeting: Meeting | None = None) -> None:
        """Build the model, after a ``meeting`` with the student's other ranks if it spans several.

        Raises ModelError if it cannot be loaded, PeerError if the device is not there or the others do not come.
        """
        use_threads(self._resources)
        self._device = pick_device(self._resources.gpus)
        self._sharding = unite(meeting, self._resources.sharding, self._device)
        exchange = self._exchange
        self._link: Link = (
            cuda_link(self.peer, self._device, exchange.steps_ahead)
            if exchange.transport == "cuda_ipc"
            else ByReference(self.peer, self._device)
        )
        self.reset()

    def meet(self, meeting: Meeting, ranks: Mapping[int, int]) -> None:
        """Join the peers' process group, through which predictions travel from now on; ``ranks``: peer -> its rank.

        Raises PeerError if the others do not come in time.
        """
        group = join(meeting, self._device, get_node_ip_address())
        self._link = Collective(self.peer, self._device, group, ranks)

    def reset(self) -> None:
        """Begin anew, with the weights of the start. Raises ModelError if the model cannot be loaded."""
        setup = self._setup
        experiment = peer_experiment(setup.experiment, self.peer)
        names = ("init",) if experiment.peers.init == "shared" else ("init", self.peer)
        seed = derive(peer_seed(experiment, self.peer), *names)
        dropout = peer_settings(experiment, self.peer).dropout
        home = self._sharding.home(self._device)
        model = build_model(experiment.model, setup.tokenizer, seed, dropout).to(home)
        micro_batch = self._resources.micro_batch
        self._learner = Learner(
            self.peer, model, setup.tokenizer, experiment, setup.method, self._sharding, micro_batch
        )

    def describe(self) -> dict[str, Any]:
        """The model's configuration, from which an evaluator builds the same architecture."""
        return describe(self._learner.model)

    def load(self, weights: np.ndarray) -> None:
        """Continue from the weights of a checkpoint."""
        with fellow_ranks(self.peer):
            self._learner.load(weights)

    def rejoin(self, generation: int) -> int:
        """After a peer was lost: drop the step that was begun, and serve ``generation`` from now on.

        Gives the step that this student is to learn next.
        """
        self._generation = generation
        return self._learner.abandon()

    def begin(self, generation: int, stage: int, tokens: pa.Table, memory: pa.Table | None = None) -> list[int]:
        """Enter a stage; from now on only calls of ``generation`` are served. Gives the last step of each epoch."""
        self._generation = generation
        self._learner.begin_stage(stage, tokens, memory)
        self._times = {}
        sampler = self._learner.sampler
        return [sampler.last_step_of(epoch) for epoch in range(self._learner.experiment.training.epochs)]

    def forward(self, generation: int, step: int, readers: Sequence[int]) -> Ticket:
        """Begin a step, and offer its predictions to the peers that learn from this one in it, if there are any."""
        self._check(generation)
        self._mark("idle")
        with fellow_ranks(self.peer):
            predictions = self._learner.forward(step, publish=bool(readers))
        ticket = self._publish(predictions, step, readers, at_once=False)
        self._mark("forward")
        return ticket

    def predict(self, generation: int, step: int, student: int, readers: Sequence[int]) -> Ticket:
        """Predictions for the batch of another student's step, offered to ``readers``; this one learns nothing."""
        self._check(generation)
        with fellow_ranks(self.peer):
            predictions = self._learner.predict(step, student)
        return self._publish(predictions, step, readers, at_once=True)

    def backward(self, generation: int, step: int, *tickets: Ticket) -> dict[str, float]:
        """Learn the step from labels and teachers' predictions. Gives its figures, with times in seconds."""
        self._check(generation)
        payloads = self._link.collect(tickets)
        self._mark("wait")
        with fellow_ranks(self.peer):
            figures = self._learner.backward(step, [self._codec.decode(payload) for payload in payloads])
        self._mark("backward")
        times = {f"{name}_seconds": self._times.get(name, 0.0) for name in ("forward", "wait", "backward", "idle")}
        sent, received = self._link.traffic()
        return figures | times | {"bytes_sent": sent, "bytes_received": received}

    def _publish(self, predictions: Predictions, step: int, readers: Sequence[int], *, at_once: bool) -> Ticket:
        names = (step, self._shard) if self._shard else (step,)
        seed = derive(self._setup.experiment.seed, "sampled", self.peer, self._learner.stage, *names)
        payload = self._codec.encode(predictions, seed) if readers else Payload()
        return self._link.publish(payload, readers, at_once=at_once)

    def consolidate(self) -> np.ndarray | None:
        """Let the guard take note of the stage that was learned. Gives all it knows, None if it keeps nothing."""
        guard = self._learner.guard
        if guard is None:
            return None
        guard.after_stage(self._learner)
        return guard.to_bytes()

    def restore_guard(self, data: np.ndarray) -> None:
        """Go on with what ``consolidate`` gave. Raises ModelError if it is damaged."""
        if self._learner.guard is not None:
            self._learner.guard.restore(data, self._device)

    def weights(self) -> np.ndarray:
        """The model's weights now, as safetensors bytes."""
        with fellow_ranks(self.peer):
            return self._learner.weights()

    def peak_memory(self) -> int:
        """Largest memory so far, in bytes."""
        return peak_memory_bytes()

    def _check(self, generation: int) -> None:
        if generation != self._generation:
            raise PeerError(f"student {self.peer}: a call of generation {generation}, but it serves {self._generation}")

    def _mark(self, name: str) -> None:
        """The time since the last mark was spent on ``name``."""
        now = time.perf_counter()
        self._times[name] = now - self._times.get("mark", now)
        self._times["mark"] = now


def use_threads(resources: Resources) -> None:
    """Give PyTorch in this process as many threads as the profile says."""
    if resources.threads is not None:
        torch.set_num_threads(resources.threads)


def peak_memory_bytes() -> int:
    """Largest memory of this process: on the GPU if it uses one, else resident."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
