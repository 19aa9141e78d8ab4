"""Failures keep their cause on Ray: the same cases as in one process, with actors that are cheap to start."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import ray

from ray_l4.cluster.handles import StudentHandle
from ray_l4.cluster.rpc import LocalRpc, RayRpc
from ray_l4.errors import PeerError, PeerLostError, RayL4Error
from ray_l4.methods import complete, isolated
from ray_l4.run.step_loop import StepRules
from tests.run.run_fixtures import CALLS, ERRORS, FAILING_STUDENTS, handles, train
from tests.run.worker_fixtures import DIE, HANG, StandIn

Actors = list[list[Any]]
"""The ranks of every student."""

LIMIT = 60.0
WHERE = r"stage 1 \(woz\.en\), step [01], figures"


def started(peers: int, ranks: int = 1) -> Actors:
    """Start students, and wait until they stand ready."""
    actor = ray.remote(num_cpus=0, max_restarts=0, max_task_retries=0)(StandIn)
    actors = [[actor.remote(peer) for _ in range(ranks)] for peer in range(peers)]
    ray.get([rank.ready.remote() for ranks in actors for rank in ranks], timeout=LIMIT)
    return actors


@pytest.fixture(scope="module")
def long_lived(ray_cluster: None) -> Iterator[Actors]:
    """Two students of two ranks, which all tests share."""
    actors = started(peers=2, ranks=2)
    yield actors
    end(actors)


@pytest.fixture
def actors(long_lived: Actors) -> Actors:
    """The shared students, when they have served all earlier calls and fail no more."""
    ray.get([rank.recover.remote() for ranks in long_lived for rank in ranks], timeout=LIMIT)
    return long_lived


def end(actors: Actors) -> None:
    for ranks in actors:
        for rank in ranks:
            ray.kill(rank)


def fail(rank: Any, method: str, error: BaseException | str, step: int = 0) -> None:
    ray.get(rank.fail.remote(method, error, step), timeout=LIMIT)


def first_ranks(actors: Actors, peers: int) -> list[StudentHandle]:
    return handles(RayRpc(), [ranks[:1] for ranks in actors[:peers]])


def test_undisturbed_students_learn_as_in_one_process(actors: Actors) -> None:
    local = [[StandIn(peer) for _ in range(2)] for peer in range(2)]
    expected = train(handles(LocalRpc(), local), complete(2))
    assert train(handles(RayRpc(), actors), complete(2)) == expected


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("who", FAILING_STUDENTS)
def test_a_failed_forward_ends_the_loop_with_its_own_error(actors: Actors, who: str, error: RayL4Error) -> None:
    topology, number = FAILING_STUDENTS[who]
    fail(actors[number][0], "forward", error, step=1)
    with pytest.raises(RayL4Error) as caught:
        train(first_ranks(actors, topology.size), topology)
    assert (type(caught.value), str(caught.value)) == (type(error), str(error))
    assert "in forward" in str(caught.value.__cause__), "the worker's traceback"
    assert ("backward", 1) not in ray.get(actors[number][0].history.remote(), timeout=LIMIT)


@pytest.mark.parametrize("method", ["forward", "backward"])
def test_an_error_on_the_second_rank_ends_the_loop(actors: Actors, method: str) -> None:
    error = PeerLostError("student 1: one of its ranks is gone")
    fail(actors[1][1], method, error, step=1)
    with pytest.raises(PeerLostError) as caught:
        train(handles(RayRpc(), actors), complete(2))
    assert str(caught.value) == str(error)
    if method == "backward":
        assert ("backward", 1) in ray.get(actors[1][0].history.remote(), timeout=LIMIT)


@pytest.mark.parametrize("method", CALLS)
@pytest.mark.parametrize("rank", [0, 1])
def test_whoever_waits_for_a_call_gets_the_error_of_any_rank(actors: Actors, method: str, rank: int) -> None:
    error = ERRORS[-1]
    fail(actors[0][rank], method, error)
    student = StudentHandle(0, RayRpc(), actors[0])
    with pytest.raises(type(error)) as caught:
        student.wait(CALLS[method](student), LIMIT, method)
    assert str(caught.value) == str(error)


@pytest.mark.parametrize("method", ["forward", "backward"])
def test_any_other_error_is_one_line_that_names_its_class_and_keeps_the_worker_s_traceback(
    actors: Actors, method: str
) -> None:
    fail(actors[0][0], method, ValueError("not a shape\nin a second line"), step=1)
    with pytest.raises(PeerError) as caught:
        train(first_ranks(actors, 1), isolated(1))
    assert not isinstance(caught.value, PeerLostError)
    assert re.fullmatch(rf"student 0, {WHERE}: ValueError: not a shape \(--debug .*\)", str(caught.value))
    traceback = str(caught.value.__cause__)
    assert f"in {method}" in traceback and "worker_fixtures.py" in traceback and "in a second line" in traceback


def test_an_error_of_another_class_reaches_those_who_depend_on_it(actors: Actors) -> None:
    fail(actors[1][0], "forward", ValueError("not a shape"), step=1)
    with pytest.raises(PeerError) as caught:
        train(first_ranks(actors, 2), complete(2))
    assert re.fullmatch(rf"student [01], {WHERE}: ValueError: not a shape \(--debug .*\)", str(caught.value))
    assert "in forward" in str(caught.value.__cause__)


@pytest.mark.parametrize("who", ["an isolated student", "student 0 of a pair", "student 1 of a pair"])
def test_a_process_that_ends_in_forward_is_lost_and_named(ray_cluster: None, who: str) -> None:
    topology, number = FAILING_STUDENTS[who]
    actors = started(topology.size)
    fail(actors[number][0], "forward", DIE, step=1)
    with pytest.raises(PeerLostError) as caught:
        train(first_ranks(actors, topology.size), topology)
    dead, others = rf"student {number}, {WHERE}: its process died", rf"student [01], {WHERE}: a peer it depends on died"
    assert re.match(rf"{dead}|{others}", str(caught.value)), str(caught.value)
    survivor = actors[1 - number][0] if topology.size > 1 else None
    if survivor is not None:
        assert ray.get(survivor.history.remote(), timeout=LIMIT), "the other one still answers"
    end(actors)


def test_a_student_that_does_not_answer_in_time_is_lost_and_named(ray_cluster: None) -> None:
    actors = started(2)
    fail(actors[1][0], "backward", HANG)
    students = first_ranks(actors, 2)
    with pytest.raises(PeerLostError, match=rf"^student 1, {WHERE}: no answer within 3 s"):
        train(students, isolated(2), range(1), StepRules(steps_ahead=1, timeout=3.0))
    end(actors)
