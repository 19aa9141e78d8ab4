"""The workers of a run: students and evaluators, as objects of this process or as Ray actors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ray_l4.config.cluster import ClusterConfig
from ray_l4.errors import ClusterError
from ray_l4.exchange.transports import InProcess, ObjectStore, Transport
from ray_l4.runtime.evaluator import Evaluator
from ray_l4.runtime.placement import bundles, describe_request
from ray_l4.runtime.setup import Setup
from ray_l4.runtime.student import Student

_EVALUATOR_RESTARTS = 3


@dataclass(frozen=True)
class Workers:
    """Students and evaluators that stand ready, and the way to them."""

    transport: Transport
    students: Sequence[Any]
    evaluators: Sequence[Any]


def local_crew(setup: Setup, cluster: ClusterConfig) -> Workers:
    """Everyone in this process, without Ray: the reference."""
    students = [Student(peer, setup, cluster) for peer in range(setup.topology.size)]
    crew = Workers(InProcess(), students, [Evaluator(setup, cluster) for _ in range(cluster.evaluators.count)])
    _await_start(crew, cluster)
    return crew


def ray_crew(setup: Setup, cluster: ClusterConfig, group: PlacementGroup | None) -> Workers:
    """One actor for each student and evaluator, students placed as the profile says.

    A student is never restarted behind the coordinator's back: what it knew of the stage would be lost. An evaluator
    knows nothing that matters, so Ray may restart it and repeat the call it was serving.
    ``group`` holds their places (:func:`reserve`). Raises what keeps an actor from starting, or PeerError if it does
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
            scheduling_strategy=_slot(group, peer),
        ).remote(peer, shared, cluster)
        for peer in range(setup.topology.size)
    ]
    wanted = cluster.evaluators
    evaluator_class = ray.remote(Evaluator)
    evaluators = [
        evaluator_class.options(
            num_cpus=wanted.cpus,
            num_gpus=wanted.gpus,
            max_restarts=_EVALUATOR_RESTARTS,
            max_task_retries=_EVALUATOR_RESTARTS,
            scheduling_strategy=_slot(group, setup.topology.size + index) if wanted.cpus or wanted.gpus else None,
        ).remote(shared, cluster)
        for index in range(wanted.count)
    ]
    crew = Workers(ObjectStore(), students, evaluators)
    _await_start(crew, cluster)
    return crew


def reserve(peers: int, cluster: ClusterConfig) -> PlacementGroup | None:
    """Places for all actors that reserve anything; whoever asked for them has to give them back.

    Raises ClusterError if the cluster has no room for them in time.
    """
    wanted = bundles(peers, cluster)
    if not wanted:
        return None
    group = placement_group(wanted, strategy=cluster.placement.strategy)
    if not group.wait(cluster.timeouts.start):
        remove_placement_group(group)
        raise ClusterError(
            f"no room after {cluster.timeouts.start:g} s for {describe_request(peers, cluster)} "
            f"(placement {cluster.placement.strategy}); free on the cluster now: {ray.available_resources()}"
        )
    return group


def _slot(group: PlacementGroup | None, index: int) -> PlacementGroupSchedulingStrategy | None:
    if group is None:
        return None
    return PlacementGroupSchedulingStrategy(placement_group=group, placement_group_bundle_index=index)


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
