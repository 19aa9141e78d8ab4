"""The workers of a run: students and evaluators, as objects of this process or as Ray actors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import (
    PlacementGroup,
    get_current_placement_group,
    placement_group,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ray_l4.config.cluster import ClusterConfig
from ray_l4.errors import ClusterError
from ray_l4.exchange.transports import InProcess, ObjectStore, Transport
from ray_l4.runtime.evaluator import Evaluator
from ray_l4.runtime.placement import bundles, describe_request
from ray_l4.runtime.setup import Setup
from ray_l4.runtime.student import Student

_EVALUATOR_RESTARTS = 3


_PATIENCE_FOR_MORE = 10.0
"""Seconds to wait for room for more students than it takes: others may be using the cluster."""


@dataclass(frozen=True)
class Places:
    """Room on the cluster: one bundle for each student, then one for each evaluator that reserves anything."""

    group: PlacementGroup
    students: int
    first: int = 0
    """Bundle of the first student; those before it are someone else's."""
    lent: bool = False
    """Whether they belong to someone else: a sweep, which reserved them for this trial."""

    def of_student(self, index: int) -> PlacementGroupSchedulingStrategy:
        """The place of a student."""
        return PlacementGroupSchedulingStrategy(self.group, placement_group_bundle_index=self.first + index)

    def of_evaluator(self, index: int) -> PlacementGroupSchedulingStrategy:
        """The place of an evaluator."""
        return self.of_student(self.students + index)

    def give_back(self) -> None:
        """Let others have them."""
        if not self.lent:
            remove_placement_group(self.group)


@dataclass(frozen=True)
class Workers:
    """Students and evaluators that stand ready, and the way to them."""

    transport: Transport
    students: Sequence[Any]
    """All peers, those included that only teach."""
    evaluators: Sequence[Any]

    def dismiss(self) -> None:
        """End all of them."""
        for worker in (*self.students, *self.evaluators):
            self.transport.end(worker)


def local_crew(setup: Setup, cluster: ClusterConfig, peers: Sequence[int]) -> Workers:
    """Everyone in this process, without Ray: the reference."""
    students = [Student(peer, setup, cluster) for peer in peers]
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
    students = [
        student_class.options(
            num_cpus=options.cpus,
            num_gpus=options.gpus,
            max_restarts=0,
            max_task_retries=0,
            scheduling_strategy=places.of_student(place),
        ).remote(peer, shared, cluster)
        for place, peer in enumerate(peers)
    ]
    wanted = cluster.evaluators
    evaluator_class = ray.remote(Evaluator)
    evaluators = [
        evaluator_class.options(
            num_cpus=wanted.cpus,
            num_gpus=wanted.gpus,
            max_restarts=_EVALUATOR_RESTARTS,
            max_task_retries=_EVALUATOR_RESTARTS,
            scheduling_strategy=places.of_evaluator(index) if wanted.cpus or wanted.gpus else None,
        ).remote(shared, cluster)
        for index in range(wanted.count)
    ]
    crew = Workers(ObjectStore(), students, evaluators)
    _await_start(crew, cluster)
    return crew


def reserve(least: int, most: int, cluster: ClusterConfig) -> Places:
    """Places for ``most`` students, or for ``least`` if the others are taken, and for the evaluators.

    A trial of a sweep runs in a group that holds ``least`` and takes those. Whoever asked for places has to give them
    back. Raises ClusterError if the cluster has no room for them in time.
    """
    trial = get_current_placement_group()
    if trial is not None:
        return Places(trial, least, lent=True)
    attempts = {most: _PATIENCE_FOR_MORE} | {least: cluster.timeouts.start}
    for students, seconds in attempts.items():
        group = placement_group(bundles(students, cluster), strategy=cluster.placement.strategy)
        if group.wait(seconds):
            return Places(group, students)
        remove_placement_group(group)
    raise ClusterError(
        f"no room after {cluster.timeouts.start:g} s for {describe_request(least, cluster)} "
        f"(placement {cluster.placement.strategy}); free on the cluster now: {ray.available_resources()}"
    )


def _await_start(crew: Workers, cluster: ClusterConfig) -> None:
    """All of them start at once. What goes wrong goes wrong in ``start``: an error in a constructor would reach us as
    the death of an actor, without its kind."""
    starting = [
        (f"{kind} {index}, start", crew.transport.submit(worker, "start"))
        for kind, workers in (("student", crew.students), ("evaluator", crew.evaluators))
        for index, worker in enumerate(workers)
    ]
    for who, reference in starting:
        crew.transport.get(reference, cluster.timeouts.start, who)
