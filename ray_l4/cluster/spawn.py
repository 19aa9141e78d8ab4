"""The workers of a run: students and evaluators, as objects of this process or as Ray actors."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.util import get_node_ip_address
from ray.util.placement_group import (
    PlacementGroup,
    get_current_placement_group,
    placement_group,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ray_l4.cluster.placement import bundles, describe_request
from ray_l4.cluster.rpc import InProcess, ObjectStore, Transport
from ray_l4.config.cluster import ClusterConfig
from ray_l4.errors import ClusterError, PeerLostError
from ray_l4.setup.setup import Setup
from ray_l4.workers.evaluator import Evaluator
from ray_l4.workers.rendezvous import Meeting, open_meeting_place
from ray_l4.workers.student import Student

_EVALUATOR_RESTARTS = 3

_PATIENCE_FOR_MORE = 10.0
"""Seconds to wait for room for more students than it takes: others may be using the cluster."""


@dataclass(frozen=True)
class Places:
    """Room on the cluster: a bundle for each rank of each student, then for each evaluator that reserves anything."""

    group: PlacementGroup
    students: int
    shards: int = 1
    """Ranks of a student."""
    first: int = 0
    """Bundle of the first student; those before it are someone else's."""
    lent: bool = False
    """Whether they belong to someone else: a sweep, which reserved them for this trial."""

    def of_student(self, index: int, shard: int) -> PlacementGroupSchedulingStrategy:
        """The place of a rank of a student; ``index`` counts those that are there."""
        return self._bundle(index * self.shards + shard)

    def of_evaluator(self, index: int) -> PlacementGroupSchedulingStrategy:
        """The place of an evaluator."""
        return self._bundle(self.students * self.shards + index)

    def _bundle(self, index: int) -> PlacementGroupSchedulingStrategy:
        return PlacementGroupSchedulingStrategy(self.group, placement_group_bundle_index=self.first + index)

    def give_back(self) -> None:
        """Let others have them."""
        if not self.lent:
            remove_placement_group(self.group)


@dataclass(frozen=True)
class Workers:
    """Students and evaluators that stand ready, and the way to them."""

    transport: Transport
    students: list[tuple[Any, ...]]
    """The ranks of every peer, those included that only teach. A lost one is replaced in its place (``hire_anew``)."""
    evaluators: Sequence[Any]
    meeting_place: Any = None
    """Where ranks meet to form process groups; None where none are needed."""
    hire: Callable[[int], tuple[Any, ...]] | None = None
    """Makes the ranks of the student in a place; None where they cannot be lost."""

    def submit(self, student: int, method: str, *arguments: Any) -> Any:
        """Call a method of all ranks of a student; gives a reference to what the first one returns."""
        return self.transport.submit(self.students[student], method, *arguments)

    def dismiss(self) -> None:
        """End all of them."""
        for worker in (*self.students, *self.evaluators):
            self.transport.end(worker)


def local_crew(setup: Setup, cluster: ClusterConfig, peers: Sequence[int]) -> Workers:
    """Everyone in this process, without Ray: the reference."""
    students = [(Student(peer, setup, cluster),) for peer in peers]
    crew = Workers(InProcess(), students, [Evaluator(setup, cluster) for _ in range(cluster.evaluators.count)])
    _await_start(crew, cluster)
    return crew


def ray_crew(setup: Setup, cluster: ClusterConfig, peers: Sequence[int], places: Places) -> Workers:
    """One actor for each student and evaluator, students placed as the profile says.

    ``peers``: what number each student goes by; models that are trained independently of each other all go by 0.

    A student is never restarted behind the coordinator's back: what it knew of the stage would be lost. An evaluator
    knows nothing that matters, so Ray may restart it and repeat the call it was serving.
    ``places`` are held for them (:func:`reserve`). Raises what keeps an actor from starting, or PeerError if it does
    not come up in time.
    """
    shared = ray.put(setup)
    options = cluster.students
    student_class = ray.remote(Student)

    present = [place for place in range(len(peers)) if place not in setup.topology.lost]

    def hire(place: int) -> tuple[Any, ...]:
        return tuple(
            student_class.options(
                num_cpus=options.cpus,
                num_gpus=options.gpus,
                resources=options.resources,
                max_restarts=0,
                max_task_retries=0,
                scheduling_strategy=places.of_student(present.index(place), shard),
            ).remote(peers[place], shared, cluster, shard)
            for shard in range(options.shards_per_student)
        )

    students = [hire(place) if place in present else () for place in range(len(peers))]
    wanted = cluster.evaluators
    evaluator_class = ray.remote(Evaluator)
    evaluators = [
        evaluator_class.options(
            num_cpus=wanted.cpus,
            num_gpus=wanted.gpus,
            resources=wanted.resources,
            max_restarts=_EVALUATOR_RESTARTS,
            max_task_retries=_EVALUATOR_RESTARTS,
            scheduling_strategy=places.of_evaluator(index) if wanted.cpus or wanted.gpus or wanted.resources else None,
        ).remote(shared, cluster)
        for index in range(wanted.count)
    ]
    groups = cluster.exchange.transport == "collective" or options.shards_per_student > 1
    place = open_meeting_place(get_node_ip_address()) if groups else None
    crew = Workers(ObjectStore(), students, evaluators, place, hire)
    _await_start(crew, cluster)
    return crew


def meet(crew: Workers, cluster: ClusterConfig, generation: int, peers: Sequence[int]) -> None:
    """Have the ranks form the process groups they need: those of equal number of all ``peers``.

    ``generation``: different every time. Raises PeerLostError if they do not meet in time.
    """
    if crew.meeting_place is None or cluster.exchange.transport != "collective":
        return
    limit = cluster.timeouts.step
    ranks = {peer: rank for rank, peer in enumerate(peers)}
    asked = []
    for peer, rank in ranks.items():
        for shard, worker in enumerate(crew.students[peer]):
            name = f"generation-{generation}/shard-{shard}"
            meeting = Meeting(crew.meeting_place.host, crew.meeting_place.port, name, rank, len(ranks), limit)
            asked.append((f"student {peer}, process group", crew.transport.submit(worker, "meet", meeting, ranks)))
    for who, reference in asked:
        crew.transport.get(reference, cluster.timeouts.start, who)


def hire_anew(crew: Workers, cluster: ClusterConfig, place: int) -> None:
    """Put a new student into the place of a lost one, with the weights of the start.

    Raises PeerLostError if it does not come up in time: its node may be gone, and no other has room.
    """
    assert crew.hire is not None, "without Ray no student is lost"
    crew.transport.end(crew.students[place])
    crew.students[place] = crew.hire(place)
    asked = _starting(crew, cluster, place)
    crew.transport.get_all(asked, cluster.timeouts.start, f"student {place}, start")


def absent(
    crew: Workers, cluster: ClusterConfig, generation: int, places: Sequence[int]
) -> tuple[dict[int, str], dict[int, int]]:
    """Who of ``places`` is lost, and how; and the next step of the others, who serve ``generation`` from now on.

    All calls that were submitted before have been served, or never will be, when this returns. A student that hangs is
    lost once it has not answered for ``timeouts.step``; so are those that wait for what it owes them, for Ray serves
    the calls of an actor in order.
    """
    if cluster.students.shards_per_student > 1:
        # Ranks that wait for one that is gone cannot go on with it, nor answer before their waiting ends.
        return dict.fromkeys(places, "one of all ranks is gone, so all are replaced"), {}
    asked = {
        place: [crew.transport.submit(rank, "rejoin", generation) for rank in crew.students[place]] for place in places
    }
    lost: dict[int, str] = {}
    steps: dict[int, int] = {}
    limit = cluster.timeouts.step
    deadline = time.monotonic() + limit  # one for all: they answer beside each other
    for place, references in asked.items():
        left = max(0.0, deadline - time.monotonic())
        try:
            steps[place] = crew.transport.get_all(references, left, f"student {place}, asked for {limit:g} s")[0]
        except PeerLostError as error:
            lost[place] = str(error)
    return lost, steps


def reserve(least: int, most: int, cluster: ClusterConfig) -> Places:
    """Places for ``most`` students, or for ``least`` if the others are taken, and for the evaluators.

    A trial of a sweep runs in a group that holds ``least`` and takes those. Whoever asked for places has to give them
    back. Raises ClusterError if the cluster has no room for them in time.
    """
    trial, shards = get_current_placement_group(), cluster.students.shards_per_student
    if trial is not None:
        return Places(trial, least, shards, lent=True)
    attempts = {most: _PATIENCE_FOR_MORE} | {least: cluster.timeouts.start}
    for students, seconds in attempts.items():
        group = placement_group(bundles(students, cluster), strategy=cluster.placement.strategy)
        if group.wait(seconds):
            return Places(group, students, shards)
        remove_placement_group(group)
    raise ClusterError(
        f"no room after {cluster.timeouts.start:g} s for {describe_request(least, cluster)} "
        f"(placement {cluster.placement.strategy}); free on the cluster now: {ray.available_resources()}"
    )


def _await_start(crew: Workers, cluster: ClusterConfig) -> None:
    """All of them start at once. What goes wrong goes wrong in ``start``: an error in a constructor would reach us as
    the death of an actor, without its kind."""
    starting = {f"student {place}, start": _starting(crew, cluster, place) for place in range(len(crew.students))}
    for index, evaluator in enumerate(crew.evaluators):
        starting[f"evaluator {index}, start"] = [crew.transport.submit(evaluator, "start")]
    for who, references in starting.items():
        crew.transport.get_all(references, cluster.timeouts.start, who)


def _starting(crew: Workers, cluster: ClusterConfig, place: int) -> list[Any]:
    """Have the ranks of a student start; several meet first, where no others have met before."""
    ranks, meeting_place = crew.students[place], crew.meeting_place
    if len(ranks) <= 1:  # none, if the student was lost before the run was resumed
        return [crew.transport.submit(rank, "start") for rank in ranks]
    name, limit = f"student-{place}/{uuid.uuid4().hex}", cluster.timeouts.step
    return [
        crew.transport.submit(
            worker, "start", Meeting(meeting_place.host, meeting_place.port, name, shard, len(ranks), limit)
        )
        for shard, worker in enumerate(ranks)
    ]
