"""Room on a shared cluster: for as many students as there is work for, or for as few as are needed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import ray
from ray.util.placement_group import placement_group, remove_placement_group

from ray_l4.cluster import reservation
from ray_l4.cluster.reservation import reserve
from ray_l4.config.cluster import ClusterConfig
from ray_l4.errors import ClusterError

ONE_CPU = ClusterConfig.model_validate({"students": {"cpus": 1}, "timeouts": {"start": 60}})


def eventually(condition: Callable[[], bool]) -> bool:
    """Wait for the condition: Ray releases resources a little later than it says."""
    deadline = time.monotonic() + 30.0
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)
    return condition()


def free() -> float:
    return ray.available_resources().get("CPU", 0.0)


@contextmanager
def taken(cpus: int) -> Iterator[None]:
    """Within this context someone else holds so many of the cluster's four CPUs."""
    assert eventually(lambda: free() == 4.0)
    group = placement_group([{"CPU": 1}] * cpus)
    assert group.wait(30)
    try:
        yield
    finally:
        remove_placement_group(group)
        assert eventually(lambda: free() == 4.0)


@dataclass
class StandInStrategy:
    """Where Ray is asked to start an actor."""

    group: str
    placement_group_bundle_index: int


def test_room_for_all_students_that_there_is_work_for(ray_cluster: None) -> None:
    with taken(1):
        found = reserve(1, 3, ONE_CPU)
        assert found.students == 3
        assert eventually(lambda: free() == 0.0)
        found.release()
        assert eventually(lambda: free() == 3.0)


def test_room_for_fewer_if_the_rest_is_taken(ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reservation, "_WAIT_FOR_MORE", 1.0)
    with taken(2):
        found = reserve(2, 3, ONE_CPU)
        assert found.students == 2
        found.release()
        assert eventually(lambda: free() == 2.0), "nothing is left of the attempt to reserve three"


def test_no_room_for_those_that_are_needed(ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reservation, "_WAIT_FOR_MORE", 1.0)
    impatient = ONE_CPU.model_copy(update={"timeouts": ONE_CPU.timeouts.model_copy(update={"start": 1.0})})
    with taken(3), pytest.raises(ClusterError, match=r"no room after 1 s for 2 students with 1 CPU.*free on the"):
        reserve(2, 3, impatient)


def test_bundles_are_ordered_by_student_then_rank_then_evaluator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reservation, "PlacementGroupSchedulingStrategy", StandInStrategy)
    found = reservation.Reservation("group", students=3, ranks=2)  # type: ignore[arg-type]
    indices = [found.of_student(index, rank) for index in range(3) for rank in range(2)]
    indices += [found.of_evaluator(index) for index in range(2)]
    assert indices == [StandInStrategy("group", bundle) for bundle in range(8)]


def test_bundles_of_a_sweep_are_not_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    removed: list[str] = []
    monkeypatch.setattr(reservation, "remove_placement_group", removed.append)
    monkeypatch.setattr(reservation, "get_current_placement_group", lambda: "of the trial")
    borrowed = reserve(2, 5, ONE_CPU)
    assert (borrowed.group, borrowed.students, borrowed.borrowed) == ("of the trial", 2, True)
    borrowed.release()
    assert removed == []
    reservation.Reservation("own", 2).release()  # type: ignore[arg-type]
    assert removed == ["own"]
