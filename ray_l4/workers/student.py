"""A student: a learner, its current stage, and the codec and link by which it exchanges predictions with peers."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from ray_l4.config.cluster import ClusterConfig
from ray_l4.errors import NonFiniteError, PeerError
from ray_l4.exchange.codecs import Payload, build_codec
from ray_l4.exchange.links import Link, Ticket
from ray_l4.learner import stage_state
from ray_l4.learner.digest import digest
from ray_l4.learner.initial_model import initial_model
from ray_l4.learner.learner import Learner
from ray_l4.learner.models import describe, has_dropout, pick_device
from ray_l4.learner.predictions import Predictions
from ray_l4.learner.stage_run import StageRun
from ray_l4.learner.validation import validation_loss
from ray_l4.methods import peer_experiment
from ray_l4.seeds import derive
from ray_l4.setup.setup import Setup
from ray_l4.text.tokens import concatenated
from ray_l4.workers.calls import FailedStep, WeightsDigest
from ray_l4.workers.failed_step import failed_step
from ray_l4.workers.links import collective_link, first_link
from ray_l4.workers.log import LogBuffer, LogLine
from ray_l4.workers.process import peak_memory_bytes, use_threads
from ray_l4.workers.ranks import other_ranks, sharding_of
from ray_l4.workers.rendezvous import Rendezvous

log = logging.getLogger("ray_l4.exchange")


class Student:
    """One rank of a student: an actor with Ray, an ordinary object without. Calls arrive in order.

    A call is refused if its fence is not the one that the student serves, or if its step is not the next one.
    """

    def __init__(
        self, peer: int, setup: Setup, cluster: ClusterConfig, rank: int = 0, rendezvous: Rendezvous | None = None
    ) -> None:
        """Build the model, after a ``rendezvous`` with the student's other ranks if it spans several.

        Raises ModelError if the model cannot be loaded, PeerError if the device is not available, PeerLostError if the
        other ranks do not join in time.
        """
        self.peer = peer
        self._rank = rank
        self._setup = setup
        self._asked = setup.experiment.distillation.asks_teachers
        self._micro_batch = cluster.students.micro_batch
        self._codec = build_codec(cluster.exchange, peer_experiment(setup.experiment, peer))
        self._log = None if cluster.in_one_process else LogBuffer.attached()
        use_threads(cluster.students)
        self._device = pick_device(cluster.students.gpus)
        self._sharding = sharding_of(rendezvous, cluster.students.sharding, self._device)
        self._link: Link = first_link(peer, self._device, cluster.exchange, _payloads(peer, setup))
        self._learner = self._new_learner()
        self._stage: StageRun | None = None
        self._fence = 0
        self._clock = StepClock()
        self._failed: FailedStep | None = None

    def __str__(self) -> str:
        rank = f", rank {self._rank}" if self._sharding.size > 1 else ""
        where = "" if self._stage is None else f", stage {self._stage.stage}, step {self._stage.next_step}"
        return f"student {self.peer}{rank}{where}"

    def ready(self) -> None:
        """Do nothing. A caller that waits for the result waits until the student is built."""

    def meet(self, rendezvous: Rendezvous, ranks: Mapping[int, int]) -> None:
        """Join the peers' process group, through which predictions travel from now on. ``ranks``: peer -> its rank.

        Raises PeerLostError if the others do not join in time.
        """
        self._link = collective_link(self.peer, self._device, rendezvous, ranks)
        log.info("student %d joined the group %s", self.peer, rendezvous.name)

    def reset(self) -> None:
        """Build the model again, with its initial weights. Raises ModelError if it cannot be loaded."""
        self._learner, self._stage = self._new_learner(), None

    def describe(self) -> dict[str, Any]:
        """Return the model's configuration, from which an evaluator builds the same architecture."""
        return describe(self._learner.model)

    def digest(self) -> WeightsDigest:
        """Return a digest of this rank's weights, and whether dropout acts on them."""
        model = self._learner.model
        return WeightsDigest(digest(model), has_dropout(model))

    def load(self, weights: np.ndarray) -> None:
        """Load the weights of a checkpoint. Raises ModelError if they are damaged or do not fit the model."""
        with other_ranks(self.peer):
            self._learner.load(weights)

    def rejoin(self, fence: int) -> int:
        """Drop the step under way after the loss of a peer, and serve ``fence`` from now on. Returns the next step."""
        self._fence = fence
        next_step = 0 if self._stage is None else self._stage.abandon()
        log.info("student %d rejoined under fence %d; its next step is %d", self.peer, fence, next_step)
        return next_step

    def begin(self, fence: int, stage: int, tokens: pa.Table, memory: pa.Table | None = None) -> list[int]:
        """Begin a stage, and serve ``fence`` from now on. Returns the last step of each epoch.

        That of a method without training is -1: no step is to be made.
        """
        self._fence = fence
        self._stage = self._learner.begin_stage(stage, tokens, memory)
        self._clock = StepClock()
        self._link.traffic()  # what an abandoned step sent does not count as sent by the first step
        sampler, epochs = self._stage.sampler, range(self._learner.experiment.epochs_of(stage))
        if not self._setup.method.learns:  # every epoch ends before the first step
            return [-1 for _ in epochs]
        return [sampler.last_step_of(epoch) for epoch in epochs]

    def state(self, fence: int) -> np.ndarray:
        """Return this rank's state of the stage after its latest step, for ``resume`` (safetensors bytes)."""
        return stage_state.to_bytes(self._served(fence))

    def resume(self, fence: int, state: np.ndarray) -> None:
        """Continue the stage that has begun from a ``state``. Raises ModelError if it is damaged or does not fit."""
        stage_state.restore(self._served(fence), state)

    def forward(self, fence: int, step: int, readers: Sequence[int]) -> Ticket:
        """Begin a step and publish its predictions to ``readers``, the peers that learn from this one in that step."""
        stage = self._served(fence)
        self._clock.begin()
        with other_ranks(self.peer):
            predictions = stage.forward(step, publish=bool(readers))
        if readers or not self._asked:
            ticket = self._publish(stage, predictions, step, readers, at_once=False)
        else:
            ticket = Ticket(self.peer, answered=stage.answered)
        self._clock.mark("forward")
        return ticket

    def predict(
        self, fence: int, step: int, student: int, readers: Sequence[int], at_once: bool, asked: Ticket | None = None
    ) -> Ticket:
        """Predict the batch of a student's step for ``readers``, without learning from it.

        ``at_once``: whether this student does not learn in the same step. ``asked``: the ticket that ``forward`` of
        ``student`` returned, with its own answers if it gave any.
        """
        stage = self._served(fence)
        self._clock.mark("wait")
        with other_ranks(self.peer):
            predictions = stage.predict(step, student, None if asked is None else asked.answered)
        ticket = self._publish(stage, predictions, step, readers, at_once=at_once)
        self._clock.mark("forward")
        return ticket

    def backward(self, fence: int, step: int, own: Ticket, *teachers: Ticket) -> dict[str, float]:
        """Learn a step from labels and the ``teachers``' predictions. Returns its figures, with times in seconds.

        ``own``: the ticket that ``forward`` returned. It is an argument so that a failed forward pass makes this call
        fail with the same cause.
        """
        stage = self._served(fence)
        if own.sender != self.peer:
            raise PeerError(
                f"student {self.peer}, step {step}: got the ticket of student {own.sender} instead of its own"
            )
        payloads = self._link.collect(teachers)
        self._clock.mark("wait")
        with other_ranks(self.peer):
            try:
                figures = stage.backward(step, [self._codec.decode(payload) for payload in payloads])
            except NonFiniteError:
                self._failed = failed_step(stage, payloads)
                raise
        self._clock.mark("backward")
        sent, received = self._link.traffic()
        return figures | self._clock.seconds() | {"bytes_sent": sent, "bytes_received": received}

    def advance(
        self, fence: int, step: int, readers: Sequence[int], own: Ticket, *teachers: Ticket
    ) -> tuple[dict[str, float], Ticket]:
        """Do ``backward`` of a step, and ``forward`` of the next one for these ``readers``."""
        return self.backward(fence, step, own, *teachers), self.forward(fence, step + 1, readers)

    def validate(self, fence: int, items: Sequence[str]) -> float:
        """Return the model's loss on the validation examples of ``items``, in nats per token of their answers.

        ``items``: of the stream.
        """
        stage = self._served(fence).stage
        examples = concatenated(*(self._setup.validation[item] for item in items))
        with other_ranks(self.peer):
            return validation_loss(self._learner, examples, stage)

    def consolidate(self) -> np.ndarray | None:
        """Update the guard with the stage that was learned. Returns the guard's state, or None if there is no guard."""
        guard = self._learner.guard
        if guard is None or self._stage is None:
            return None
        self._stage.consolidate()
        return guard.to_bytes()

    def restore_guard(self, data: np.ndarray) -> None:
        """Load a guard's state, as ``consolidate`` returned it. Raises ModelError if it is damaged."""
        if self._learner.guard is not None:
            self._learner.guard.restore(data, self._device)

    def weights(self) -> np.ndarray:
        """Return the model's weights as safetensors bytes. Only the first of several ranks returns them."""
        with other_ranks(self.peer):
            return self._learner.weights()

    def peak_memory(self) -> int:
        """Return the peak memory of this process so far, in bytes."""
        return peak_memory_bytes()

    def failed_step(self) -> FailedStep | None:
        """Return what it takes, beside the weights, to repeat the step that raised NonFiniteError, if one did."""
        return self._failed

    def take_log(self) -> list[LogLine]:
        """Return the lines logged since the last call; none without Ray, where they go straight to the run's files."""
        return [] if self._log is None else self._log.take()

    def _new_learner(self) -> Learner:
        setup = self._setup
        experiment = peer_experiment(setup.experiment, self.peer)
        home = self._sharding.home(self._device)
        model = initial_model(setup.experiment, self.peer, setup.tokenizer).to(home)
        return Learner(self.peer, model, setup.tokenizer, experiment, setup.method, self._sharding, self._micro_batch)

    def _publish(
        self, stage: StageRun, predictions: Predictions, step: int, readers: Sequence[int], *, at_once: bool
    ) -> Ticket:
        names = (step, self._rank) if self._rank else (step,)
        if self._asked:
            names = (*names, "for", *readers)
        seed = derive(self._setup.experiment.seed, "sampled", self.peer, stage.stage, *names)
        payload = self._codec.encode(predictions, seed) if readers else Payload()
        log.debug("student %d, stage %d, step %d: %d bytes", self.peer, stage.stage, step, payload.num_bytes)
        return self._link.publish(payload, readers, at_once=at_once)

    def _served(self, fence: int) -> StageRun:
        """Return the current stage. Raises PeerError if the fence is not the current one, or if no stage has begun."""
        if fence != self._fence:
            raise PeerError(f"student {self.peer}: refused a call with fence {fence}; it serves fence {self._fence}")
        if self._stage is None:
            raise PeerError(f"student {self.peer}: asked for a step before a stage began")
        return self._stage


def _payloads(peer: int, setup: Setup) -> int:
    """Return how many payloads a peer publishes in a step, at most."""
    readers = sum(teacher == peer for teacher, _ in setup.topology.edges)
    return max(1, readers) if setup.experiment.distillation.asks_teachers else 1


class StepClock:
    """Measures how much time a student spends on each part of a step."""

    _NAMES = ("forward", "wait", "backward", "idle")

    def __init__(self) -> None:
        self._times: dict[str, float] = {}
        self._last: float | None = None

    def begin(self) -> None:
        """Begin a step: the time since the last mark was idle."""
        self._times = {}
        self.mark("idle")

    def mark(self, name: str) -> None:
        """Attribute the time since the last mark to ``name``, beside what it has in this step."""
        now = time.perf_counter()
        self._times[name] = self._times.get(name, 0.0) + (0.0 if self._last is None else now - self._last)
        self._last = now

    def seconds(self) -> dict[str, float]:
        """Return the time of each name in this step, in seconds."""
        return {f"{name}_seconds": self._times.get(name, 0.0) for name in self._NAMES}
