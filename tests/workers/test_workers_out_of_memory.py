"""A worker that runs out of memory is named in one message, with and without Ray's actor class."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Protocol

import pytest
import torch

from ray_l4.cluster.actors import actor_class
from ray_l4.cluster.rpc import LocalRpc, get
from ray_l4.errors import PeerError, PeerLostError
from ray_l4.workers.out_of_memory import is_out_of_memory
from tests.run.run_fixtures import cluster as profile
from tests.run.run_fixtures import experiment, finish, new_run, start


def too_large_a_tensor() -> None:
    torch.empty(2**60, dtype=torch.uint8)


def too_large_a_list() -> None:
    bytearray(2**62)


def no_room_on_the_gpu() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


ALLOCATIONS = [too_large_a_tensor, too_large_a_list, no_room_on_the_gpu]


class Calls(Protocol):
    """An interface."""

    def work(self, allocate: Callable[[], None]) -> None: ...


class Served:
    """Allocates when it is built or called."""

    def __init__(self, allocate: Callable[[], None] = lambda: None) -> None:
        allocate()

    def __str__(self) -> str:
        return "student 1, stage 0, step 3"

    def work(self, allocate: Callable[[], None]) -> None:
        allocate()


HERE = "tests.workers.test_workers_out_of_memory:Served"
NAMED = r"^student 1, stage 0, step 3: ran out of memory \(.*students\.micro_batch.*shards_per_student.*gradient_check"


@pytest.mark.parametrize("allocate", ALLOCATIONS)
def test_a_call_that_runs_out_of_memory_names_the_worker_and_what_helps(allocate: Callable[[], None]) -> None:
    with pytest.raises(PeerError, match=NAMED) as caught:
        actor_class(Calls, HERE)().work(allocate)
    assert not isinstance(caught.value, PeerLostError), "it would be learned again"
    assert is_out_of_memory(caught.value.__cause__ or ValueError())


@pytest.mark.parametrize("allocate", ALLOCATIONS)
def test_so_does_a_call_within_one_process(allocate: Callable[[], None]) -> None:
    rpc = LocalRpc()
    reference = rpc.call(Served(), Served.work, allocate)
    with pytest.raises(PeerError, match=NAMED):
        get(rpc, reference, 1.0, "work")


def test_a_worker_that_cannot_be_built_for_want_of_memory_says_so_too() -> None:
    with pytest.raises(PeerError, match=r"^served: ran out of memory .*students\.micro_batch"):
        actor_class(Calls, HERE)(too_large_a_tensor).work(lambda: None)


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ValueError("out of memory"), KeyError("memory")])
def test_other_errors_are_not_taken_for_it(error: Exception) -> None:
    assert not is_out_of_memory(error)
    with pytest.raises(type(error)):
        LocalRpc().call(Served(), Served.work, lambda: (_ for _ in ()).throw(error).__next__())


@pytest.mark.parametrize("method", ["finetune", "l4"])
@pytest.mark.parametrize("part", ["outputs", "_update"])
def test_a_run_ends_at_once_with_one_message(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, method: str, part: str
) -> None:
    """The third step of the first student allocates too much, in its forward pass or its update."""
    from ray_l4.learner.peer_model import PeerModel
    from ray_l4.learner.stage_run import StageRun

    owner: Any = PeerModel if part == "outputs" else StageRun
    original, calls = getattr(owner, part), iter(range(10**6))

    def allocating(self: Any, *arguments: Any) -> Any:
        if next(calls) == 4:
            too_large_a_tensor()
        return original(self, *arguments)

    monkeypatch.setattr(owner, part, allocating)
    setup, run = new_run(experiment(method=method), profile("in_process"), tmp_path / "run")
    with pytest.raises(PeerError) as caught:
        finish(start(setup, profile("in_process"), run))
    step = 2 if method == "l4" else 4
    assert re.match(rf"student 0, stage 0, step {step}: ran out of memory \(", str(caught.value))
    assert caught.value.exit_code == 7
    assert run.state().restarts == 0
