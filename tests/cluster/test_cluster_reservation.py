"""Places on a shared cluster: as many as there is work for, or as few as it takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import ray
from ray.util.placement_group import placement_group, remove_placement_group

from ray_l4.cluster import spawn as crew
from ray_l4.cluster.spawn import reserve
from ray_l4.config.cluster import ClusterConfig
from ray_l4.errors import ClusterError

ONE_CPU = ClusterConfig.model_validate({"students": {"cpus": 1}, "timeouts": {"start": 60}})


def eventually(condition: Callable[[], bool]) -> bool:
    """Ray gives resources back a little later than it says."""
    deadline = time.monotonic() + 30.0
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)
    return condition()


def free() -> float:
    return ray.available_resources().get("CPU", 0.0)


@contextmanager
def taken(cpus: int) -> Iterator[None]:
    """So many of the cluster's four CPUs belong to someone else."""
    assert eventually(lambda: free() == 4.0)
    group = placement_group([{"CPU": 1}] * cpus)
    assert group.wait(30)
    try:
        yield
    finally:
        remove_placement_group(group)
        assert eventually(lambda: free() == 4.0)


def test_all_places_that_there_is_work_for(ray_cluster: None) -> None:
    with taken(1):
        places = reserve(1, 3, ONE_CPU)
        assert places.students == 3
        assert eventually(lambda: free() == 0.0)
        places.give_back()
        assert eventually(lambda: free() == 3.0)


def test_fewer_if_the_others_are_taken(ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "_PATIENCE_FOR_MORE", 1.0)
    with taken(2):
        places = reserve(2, 3, ONE_CPU)
        assert places.students == 2
        places.give_back()
        assert eventually(lambda: free() == 2.0), "neither the attempt for three is left behind"


def test_no_room_for_those_it_takes(ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "_PATIENCE_FOR_MORE", 1.0)
    impatient = ONE_CPU.model_copy(update={"timeouts": ONE_CPU.timeouts.model_copy(update={"start": 1.0})})
    with taken(3), pytest.raises(ClusterError, match=r"no room after 1 s for 2 students with 1 CPU.*free on the"):
        reserve(2, 3, impatient)
