"""Starts students and evaluators, as objects in this process or as Ray actors."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import ray

from ray_l4.cluster.actors import actor_class
from ray_l4.cluster.evaluators import Evaluators
from ray_l4.cluster.handles import EvaluatorHandle, StudentHandle
from ray_l4.cluster.pulses import Pulse
from ray_l4.cluster.reservation import Reservation
from ray_l4.cluster.rpc import LocalRpc, RayRpc, Rpc
from ray_l4.config.cluster import ClusterConfig, Resources
from ray_l4.setup.setup import Setup
from ray_l4.workers.calls import EvaluatorCalls, StudentCalls
from ray_l4.workers.process import address

if TYPE_CHECKING:
    from ray_l4.workers.rendezvous import RendezvousStore


_STUDENTS = "students"
"""The team of all students: each may wait for the others."""


class Spawner(Protocol):
    """Starts the workers of one run."""

    @property
    def rpc(self) -> Rpc:
        """By which the workers are called."""

    peers: Sequence[int]
    """The peer of each slot; models that are trained independently of each other are all peer 0."""
    rendezvous: RendezvousStore | None
    """Where ranks meet to form process groups; None if none are needed."""

    def student(self, slot: int) -> StudentHandle:
        """Start the student of a slot, without waiting until it is ready."""

    def evaluators(self) -> Evaluators:
        """Start all evaluators, without waiting until they are ready."""


class LocalSpawner:
    """Starts all workers in this process, without Ray; runs on Ray must give the same results."""

    def __init__(self, setup: Setup, cluster: ClusterConfig, peers: Sequence[int], lost: Collection[int] = ()) -> None:
        """The arguments are those of ``RaySpawner``, without a reservation."""
        self.rpc: Rpc = LocalRpc()
        self.peers = peers
        self.rendezvous: RendezvousStore | None = None
        self._setup = setup
        self._cluster = cluster

    def student(self, slot: int) -> StudentHandle:
        from ray_l4.workers.student import Student  # loads PyTorch and Transformers

        student: StudentCalls = Student(self.peers[slot], self._setup, self._cluster)
        return StudentHandle(slot, self.rpc, [student])

    def evaluators(self) -> Evaluators:
        from ray_l4.workers.evaluator import Evaluator

        workers: list[EvaluatorCalls] = [
            Evaluator(self._setup, self._cluster) for _ in range(self._cluster.evaluators.count)
        ]
        return Evaluators([EvaluatorHandle(self.rpc, worker) for worker in workers])


class RaySpawner:
    """Starts an actor for each rank of a student and for each evaluator, in the bundles reserved for them.

    Ray restarts none of them: the state of a student within the stage would be lost without the coordinator noticing,
    and the coordinator replaces evaluators itself, as often as it takes (``run/work_queue.py``).
    """

    def __init__(
        self,
        setup: Setup,
        cluster: ClusterConfig,
        peers: Sequence[int],
        lost: Collection[int],
        reservation: Reservation,
    ) -> None:
        """``lost``: slots without a reservation, because their students were lost before the run was resumed."""
        rpc = RayRpc()
        self.rpc: Rpc = rpc
        self._pulses = rpc.pulses
        self.peers = peers
        self.rendezvous = _rendezvous_store(cluster) if cluster.forms_groups else None
        self._cluster = cluster
        self._reservation = reservation
        self._reserved = [slot for slot in range(len(peers)) if slot not in lost]
        self._setup = ray.put(setup)
        self._student_class = ray.remote(actor_class(StudentCalls, "ray_l4.workers.student:Student"))
        self._evaluator_class = ray.remote(actor_class(EvaluatorCalls, "ray_l4.workers.evaluator:Evaluator"))

    def student(self, slot: int) -> StudentHandle:
        count, index = self._cluster.students.shards_per_student, self._reserved.index(slot)
        members: Sequence[Any] = [None]
        if count > 1 and self.rendezvous is not None:
            members = self.rendezvous.members(f"student-{slot}/{uuid.uuid4().hex}", count)
        ranks = []
        for rank, member in enumerate(members):
            who = f"student {slot}" + (f", rank {rank}" if count > 1 else "")
            place = self._reservation.of_student(index, rank)
            given = (self.peers[slot], self._setup, self._cluster, rank, member)
            ranks.append(self._start(self._student_class, self._cluster.students, place, who, given, _STUDENTS))
        return StudentHandle(slot, self.rpc, ranks)

    def evaluators(self) -> Evaluators:
        count = self._cluster.evaluators.count
        return Evaluators([self._evaluator(index) for index in range(count)], self._evaluator)

    def _evaluator(self, index: int) -> EvaluatorHandle:
        wanted = self._cluster.evaluators
        reserved = wanted.cpus or wanted.gpus or wanted.resources
        place = self._reservation.of_evaluator(index) if reserved else None
        who = f"evaluator {index}"
        given = (self._setup, self._cluster)
        return EvaluatorHandle(self.rpc, self._start(self._evaluator_class, wanted, place, who, given, who))

    def _start(
        self, actor: Any, resources: Resources, place: Any, who: str, arguments: Sequence[Any], team: str
    ) -> Any:
        """Start an actor in its ``place``, and watch its pulse. ``team``: see ``Pulses.watch``."""
        pulse = Pulse(f"{who}/{uuid.uuid4().hex}", self._cluster.timeouts.control)
        worker = actor.options(
            **_share(resources), max_restarts=0, max_task_retries=0, scheduling_strategy=place
        ).remote(*arguments, pulse=(pulse.name, pulse.limit))
        self._pulses.watch(worker, who, pulse, team)
        return worker


def _rendezvous_store(cluster: ClusterConfig) -> RendezvousStore:
    from ray_l4.workers.rendezvous import RendezvousStore  # loads PyTorch

    return RendezvousStore.open(address(), cluster.timeouts.step)


def _share(resources: Resources) -> dict[str, Any]:
    return {"num_cpus": resources.cpus, "num_gpus": resources.gpus, "resources": resources.resources}
