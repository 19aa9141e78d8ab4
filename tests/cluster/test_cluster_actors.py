"""Actor classes, without Ray: an error in the constructor of what they serve keeps its class."""

from __future__ import annotations

import inspect
from typing import Any, Protocol

import pytest

from ray_l4.cluster.actors import actor_class
from ray_l4.errors import ModelError, PeerError, PeerLostError, RayL4Error
from ray_l4.workers.calls import EvaluatorCalls, StudentCalls
from ray_l4.workers.evaluator import Evaluator
from ray_l4.workers.student import Student

HERE = "tests.cluster.test_cluster_actors:Served"


class Calls(Protocol):
    """An interface."""

    def ready(self) -> None: ...

    def add(self, number: int, *more: int) -> int: ...


class Served:
    """Has a start value, or fails with an error in its place."""

    def __init__(self, start: int | Exception) -> None:
        if isinstance(start, Exception):
            raise start
        self.start = start

    def __str__(self) -> str:
        return "the served object"

    def ready(self) -> None:
        """Nothing to do."""

    def add(self, number: int, *more: int) -> int:
        if number < 0:
            raise PeerError(f"{number} is below 0")
        return self.start + number + sum(more)


def test_calls_reach_the_object_that_is_served() -> None:
    actor = actor_class(Calls, HERE)(5)
    assert actor.ready() is None
    assert (actor.add(1), actor.add(1, 2, 3)) == (6, 11)
    with pytest.raises(PeerError, match="-1 is below 0"):
        actor.add(-1)


@pytest.mark.parametrize("error", [ModelError("no such model"), PeerLostError("the other ranks did not come")])
def test_an_error_of_this_project_in_the_constructor_is_raised_by_every_call(error: RayL4Error) -> None:
    """Ray would report the death of an actor, and with it another exit code of the command."""
    actor = actor_class(Calls, HERE)(error)
    for call in (actor.ready, lambda: actor.add(1), actor.ready):
        with pytest.raises(RayL4Error) as caught:
            call()
        assert caught.value is error


def test_any_other_error_in_the_constructor_keeps_its_class_too() -> None:
    actor = actor_class(Calls, HERE)(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        actor.ready()


def test_any_other_error_of_a_call_names_who_failed_and_its_class() -> None:
    actor = actor_class(Calls, HERE)(5)
    with pytest.raises(PeerError, match=r"^the served object: TypeError: .*\(--debug") as caught:
        actor.add("no number")
    assert isinstance(caught.value.__cause__, TypeError)


def test_actors_have_the_calls_of_the_interface_and_the_name_of_what_they_serve() -> None:
    found = actor_class(Calls, HERE)
    assert found.__name__ == "Served", "the name of an actor's process"
    assert {name for name in vars(found) if not name.startswith("_")} == {"ready", "add"}


@pytest.mark.parametrize(("calls", "worker"), [(StudentCalls, Student), (EvaluatorCalls, Evaluator)])
def test_a_worker_serves_all_calls_of_its_interface_and_nothing_else(calls: type[Any], worker: type[Any]) -> None:
    def public(owner: type[Any]) -> dict[str, list[str]]:
        methods = inspect.getmembers(owner, inspect.isfunction)
        return {
            name: list(inspect.signature(method).parameters) for name, method in methods if not name.startswith("_")
        }

    assert public(calls) == public(worker)
