"""What Ray says when a process or a node goes, as this project's own errors: who is lost can be replaced."""

from __future__ import annotations

import re
from typing import Any

import pytest
import ray
from ray.exceptions import (
    ActorDiedError,
    ActorUnschedulableError,
    GetTimeoutError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayError,
    RayTaskError,
    WorkerCrashedError,
)

from ray_l4.cluster.rpc import ObjectStore
from ray_l4.errors import ModelError, PeerError, PeerLostError

LOST: list[tuple[RayError, str]] = [
    (GetTimeoutError("late"), r"no answer within 3 s"),
    (ActorDiedError(), r"its process died"),
    (WorkerCrashedError(), r"its process died"),
    (NodeDiedError("node 4 is dead"), r"its process died \(node 4 is dead\)"),
    (ObjectLostError("ab" * 14, None, ""), r"the node that held the answer is gone"),
    (OutOfMemoryError("22 GB of 23 GB\nlist of processes"), r"ran out of memory \(22 GB of 23 GB\)\..*micro_batch"),
]


def raised(monkeypatch: pytest.MonkeyPatch, error: Exception) -> PeerError:
    """What whoever waits is told."""

    def get(references: Any, timeout: float) -> None:
        raise error

    monkeypatch.setattr(ray, "get", get)
    with pytest.raises(PeerError) as caught:
        ObjectStore().get_all([object()], 3.0, "student 1, step 7")
    return caught.value


def failed(cause: Exception) -> RayTaskError:
    """The error of a call that failed because of ``cause``."""
    return RayTaskError("backward", "its traceback", cause)


@pytest.mark.parametrize(("error", "words"), LOST, ids=lambda value: type(value).__name__)
def test_who_is_gone_is_lost(monkeypatch: pytest.MonkeyPatch, error: RayError, words: str) -> None:
    found = raised(monkeypatch, error)
    assert isinstance(found, PeerLostError)
    assert re.match(rf"student 1, step 7: .*{words}", str(found)), str(found)


@pytest.mark.parametrize("error", [own for own, _ in LOST[1:]], ids=lambda value: type(value).__name__)
def test_who_waits_for_one_that_is_gone_says_so(monkeypatch: pytest.MonkeyPatch, error: RayError) -> None:
    found = raised(monkeypatch, failed(error))
    assert isinstance(found, PeerLostError)
    twice = raised(monkeypatch, failed(failed(error)))
    assert str(twice) == str(found)


def test_other_trouble_is_no_loss_and_has_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """To try again would not help."""
    found = raised(monkeypatch, ActorUnschedulableError("no such node"))
    assert not isinstance(found, PeerLostError)
    assert "ActorUnschedulableError: " in str(found) and "no such node" in str(found)


def test_what_a_worker_raises_keeps_its_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    def get(references: Any, timeout: float) -> None:
        raise failed(ModelError("no such model"))

    monkeypatch.setattr(ray, "get", get)
    with pytest.raises(ModelError, match="no such model"):
        ObjectStore().get(object(), 3.0, "student 1, start")
    found = raised(monkeypatch, failed(ZeroDivisionError("division by zero")))
    assert not isinstance(found, PeerLostError)
    assert "ZeroDivisionError: division by zero" in str(found) and "its traceback" in str(found)
