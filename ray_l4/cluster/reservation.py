"""Reserves resources on a Ray cluster before any worker is started."""

from __future__ import annotations

from dataclasses import dataclass

import ray
from ray.util.placement_group import (
    PlacementGroup,
    get_current_placement_group,
    placement_group,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ray_l4.cluster.placement import bundles, describe_request
from ray_l4.config.cluster import ClusterConfig
from ray_l4.errors import ClusterError

_WAIT_FOR_MORE = 10.0
"""Seconds to wait for room for more students than necessary: other jobs may be using the cluster."""


@dataclass(frozen=True)
class Reservation:
    """Bundles: one for each rank of each student, then one for each evaluator that reserves anything."""

    group: PlacementGroup
    students: int
    ranks: int = 1
    """Ranks of a student."""
    borrowed: bool = False
    """Whether the bundles belong to a sweep, which reserved them for this trial."""

    def of_student(self, index: int, rank: int) -> PlacementGroupSchedulingStrategy:
        """Return the bundle of a rank. ``index``: the student's position among those that are started."""
        return self._bundle(index * self.ranks + rank)

    def of_evaluator(self, index: int) -> PlacementGroupSchedulingStrategy:
        """Return the bundle of an evaluator."""
        return self._bundle(self.students * self.ranks + index)

    def _bundle(self, index: int) -> PlacementGroupSchedulingStrategy:
        return PlacementGroupSchedulingStrategy(self.group, placement_group_bundle_index=index)

    def release(self) -> None:
        """Return the bundles to the cluster, unless they are borrowed."""
        if not self.borrowed:
            remove_placement_group(self.group)


def reserve(least: int, most: int, cluster: ClusterConfig) -> Reservation:
    """Reserve bundles for ``most`` students, or for ``least`` if there is no room for more, and for the evaluators.

    A trial of a sweep borrows the placement group that it runs in, which has room for ``least``. The caller must
    ``release`` the reservation. Raises ClusterError if there is no room within ``timeouts.start``.
    """
    trial, ranks = get_current_placement_group(), cluster.students.shards_per_student
    if trial is not None:
        return Reservation(trial, least, ranks, borrowed=True)
    attempts = {most: _WAIT_FOR_MORE} | {least: cluster.timeouts.start}
    for students, seconds in attempts.items():
        group = placement_group(bundles(students, cluster), strategy=cluster.placement.strategy)
        if group.wait(seconds):
            return Reservation(group, students, ranks)
        remove_placement_group(group)
    raise ClusterError(
        f"no room after {cluster.timeouts.start:g} s for {describe_request(least, cluster)} "
        f"(placement {cluster.placement.strategy}); free on the cluster now: {ray.available_resources()}"
    )
