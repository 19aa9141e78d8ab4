"""Calls within one process, and Ray's errors as this project's own: students that are lost can be replaced."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import ray
from ray.exceptions import (
    ActorDiedError,
    ActorUnschedulableError,
    GetTimeoutError,
    NodeDiedError,
    ObjectLostError,
    OutOfDiskError,
    OutOfMemoryError,
    RayError,
    RayTaskError,
    WorkerCrashedError,
)

from ray_l4.cluster.rpc import LocalRpc, RayRpc, get, get_first
from ray_l4.errors import ModelError, PeerError, PeerLostError, RunDirectoryError
from tests.run.worker_fixtures import FENCE, StandIn


def failing(error: BaseException) -> StandIn:
    """A student whose forward fails."""
    student = StandIn(0)
    student.fail("forward", error)
    return student


# --- in one process


def test_in_process_errors_are_kept_for_whoever_waits() -> None:
    rpc, error = LocalRpc(), PeerError("broken")
    failed = rpc.call(failing(error), StandIn.forward, FENCE, 0)
    dependant = rpc.call(StandIn(1), StandIn.backward, FENCE, 0, failed)
    assert rpc.ready([failed, dependant]) == [failed, dependant]
    for reference in (failed, dependant):
        with pytest.raises(PeerError) as caught:
            get(rpc, reference, 1, "student 1")
        assert caught.value is error


def test_in_process_a_call_with_a_failed_argument_is_not_made() -> None:
    rpc, reader = LocalRpc(), StandIn(1)
    failed = rpc.call(failing(PeerError("broken")), StandIn.forward, FENCE, 0)
    own = rpc.call(reader, StandIn.forward, FENCE, 0)
    rpc.call(reader, StandIn.backward, FENCE, 0, own, failed)
    assert reader.done == [("forward", 0)]


def test_in_process_a_defect_of_the_program_is_not_hidden() -> None:
    """Only this project's own errors are kept; any other ends the program at once, with its traceback."""
    with pytest.raises(ZeroDivisionError):
        LocalRpc().call(failing(ZeroDivisionError()), StandIn.forward, FENCE, 0)


def test_in_process_put_stores_one_value_for_all_readers() -> None:
    rpc, value = LocalRpc(), [1, 2, 3]
    reference = rpc.put(value)
    assert get(rpc, reference, 1, "") is value
    assert get(rpc, rpc.call([[1, 2, 3], []], list.index, reference), 1, "") == 0, "workers get the value"


def test_in_process_references_are_told_apart_even_if_their_values_are_equal() -> None:
    """They are keys of the queue's table."""
    rpc = LocalRpc()
    assert len({rpc.put(1), rpc.put(1), rpc.put([])}) == 3


def test_in_process_values_come_by_name_and_in_order() -> None:
    rpc = LocalRpc()
    references = {"student 0": [rpc.put("a"), rpc.put("b")], "student 1": [rpc.put("c")], "student 2": []}
    assert rpc.get_all(references, 1) == {"student 0": ["a", "b"], "student 1": ["c"], "student 2": []}
    assert get_first(rpc, references["student 0"], 1, "student 0") == "a"


def test_in_process_any_error_among_several_references_is_raised() -> None:
    rpc, error = LocalRpc(), ModelError("broken")
    failed = rpc.call(failing(error), StandIn.forward, FENCE, 0)
    for references in ({"a": [failed]}, {"a": [rpc.put(1)], "b": [rpc.put(2), failed]}):
        with pytest.raises(ModelError) as caught:
            rpc.get_all(references, 1)
        assert caught.value is error
    with pytest.raises(ModelError):
        get_first(rpc, [rpc.put(1), failed], 1, "student 0")


# --- Ray's errors


LOST: list[tuple[RayError, str]] = [
    (GetTimeoutError("late"), r"no answer within 3 s"),
    (ActorDiedError(), r"its process died"),
    (WorkerCrashedError(), r"its process died"),
    (NodeDiedError("node 4 is dead"), r"its process died \(node 4 is dead\)"),
    (ObjectLostError("ab" * 14, None, ""), r"the node that held the answer is gone"),
    (OutOfMemoryError("22 GB of 23 GB\nlist of processes"), r"ran out of memory \(22 GB of 23 GB\)\..*micro_batch"),
]

PENDING = "pending"
ELSEWHERE = "elsewhere"
"""The value is there, but not on this node: Ray says that it is ready, and does not return it without waiting."""


def pretend(monkeypatch: pytest.MonkeyPatch, outcomes: Mapping[str, Any]) -> None:
    """Have Ray know the references ``outcomes``: values, errors, PENDING or ELSEWHERE."""

    def wait(references: Sequence[str], *, num_returns: int, timeout: float, fetch_local: bool) -> Any:
        assert num_returns == len(references) and timeout == 0 and not fetch_local
        done = [own for own in references if outcomes[own] is not PENDING]
        return done, [own for own in references if own not in done]

    def fetch(references: Any, timeout: float) -> Any:
        asked = [references] if isinstance(references, str) else references
        for own in asked:
            if isinstance(outcomes[own], Exception):
                raise outcomes[own]
        if any(outcomes[own] is PENDING or (outcomes[own] is ELSEWHERE and timeout == 0) for own in asked):
            raise GetTimeoutError("late")
        return [outcomes[own] for own in asked]

    monkeypatch.setattr(ray, "get", fetch)
    monkeypatch.setattr(ray, "wait", wait)


def raised(monkeypatch: pytest.MonkeyPatch, error: Exception) -> PeerError:
    """Return the error that whoever waits for a student gets in place of ``error``."""
    pretend(monkeypatch, {"reference": error})
    with pytest.raises(PeerError) as caught:
        RayRpc().get_all({"student 1, step 7": ["reference"]}, 3.0)
    return caught.value


def failed(cause: Exception) -> RayTaskError:
    """The error of a call that failed because of ``cause``."""
    return RayTaskError("backward", "its traceback", cause)


@pytest.mark.parametrize(("error", "words"), LOST, ids=lambda value: type(value).__name__)
def test_a_student_that_is_gone_is_lost(monkeypatch: pytest.MonkeyPatch, error: RayError, words: str) -> None:
    found = raised(monkeypatch, error)
    assert isinstance(found, PeerLostError)
    assert re.match(rf"student 1, step 7: .*{words}", str(found)), str(found)


TRACEBACK = """\x1b[36mray::CoordinatorActor.__init__()\x1b[39m (pid=123, ip=192.0.2.1)
  File "/a/b.py", line 3, in __init__
    raise ValueError("first", 7)
ValueError: the tables do not fit
  two: of them"""


def test_an_actor_that_cannot_be_created_keeps_its_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    died = ActorDiedError(RayTaskError("__init__", TRACEBACK, ValueError("x"), actor_id="01"))
    found = raised(monkeypatch, died)
    assert type(found) is PeerError
    assert (
        str(found) == "student 1, step 7: its process could not start: ValueError: the tables do not fit two: of them"
    )


def test_a_full_disk_of_ray_is_named_with_its_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/fast")
    found = raised(monkeypatch, OutOfDiskError("Local disk is full"))
    assert isinstance(found, PeerError)
    assert "the disk of Ray's temporary folder /fast/ray is full" in str(found) and "RAY_TMPDIR=FOLDER" in str(found)


def test_a_full_disk_of_a_worker_is_named_with_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, {"reference": failed(OSError(28, "No space left on device", "/disk/file"))})
    with pytest.raises(RunDirectoryError, match=r"^student 1: /disk/file: cannot be written, because the disk is full"):
        RayRpc().get_all({"student 1": ["reference"]}, 3.0)


@pytest.mark.parametrize("error", [own for own, _ in LOST[1:]], ids=lambda value: type(value).__name__)
def test_a_student_that_depends_on_one_that_is_gone_says_so(monkeypatch: pytest.MonkeyPatch, error: RayError) -> None:
    found = raised(monkeypatch, failed(error))
    assert isinstance(found, PeerLostError)
    twice = raised(monkeypatch, failed(failed(error)))
    assert str(twice) == str(found)


def test_other_trouble_of_ray_is_no_loss_and_has_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """To try again would not help."""
    found = raised(monkeypatch, ActorUnschedulableError("no such node"))
    assert not isinstance(found, PeerLostError)
    assert "ActorUnschedulableError: " in str(found) and "no such node" in str(found)
    assert "\n" not in str(found)


def test_an_error_of_this_project_arrives_as_it_was_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    error = ModelError("no such model")
    for outcome in (failed(error), failed(failed(error))):
        pretend(monkeypatch, {"reference": outcome})
        with pytest.raises(ModelError) as caught:
            get(RayRpc(), "reference", 3.0, "student 1, start")  # type: ignore[arg-type]
        assert caught.value is error
        assert "its traceback" in str(caught.value.__cause__)


def test_any_other_error_is_one_line_that_names_its_class_and_keeps_its_traceback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = raised(monkeypatch, failed(ZeroDivisionError("division by zero\nin a second line")))
    assert not isinstance(found, PeerLostError)
    assert re.fullmatch(r"student 1, step 7: ZeroDivisionError: division by zero \(--debug .*\)", str(found))
    assert "its traceback" in str(found.__cause__)
    empty = raised(monkeypatch, failed(AssertionError()))
    assert str(empty).startswith("student 1, step 7: AssertionError: ")


# --- who it was


def message(monkeypatch: pytest.MonkeyPatch, outcomes: Mapping[str, Any]) -> str:
    """Return the message of the error for students of two ranks each. ``outcomes``: ``a0`` for a's rank 0."""
    pretend(monkeypatch, {f"{who}{rank}": 1 for who in "abc" for rank in range(2)} | outcomes)
    with pytest.raises(PeerError) as caught:
        RayRpc().get_all({f"student {who}": [f"{who}0", f"{who}1"] for who in "abc"}, 3.0)
    return str(caught.value)


@pytest.mark.parametrize("error", [ActorDiedError(), failed(ValueError("bad"))], ids=["died", "failed"])
@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_names_the_student_that_failed(monkeypatch: pytest.MonkeyPatch, error: Exception, rank: int) -> None:
    others = {"a0": PENDING, "a1": ELSEWHERE, "c0": PENDING}
    assert message(monkeypatch, others | {f"b{rank}": error}).startswith("student b: ")


@pytest.mark.parametrize("rank", [0, 1])
def test_the_death_of_a_student_comes_before_errors_that_followed_from_it(
    monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    """Whichever Ray reports first: the calls of the others failed because they needed its answer."""
    followed = {"a0": failed(ActorDiedError()), "a1": failed(PeerLostError("student a: a peer is gone"))}
    found = message(monkeypatch, followed | {f"b{rank}": ActorDiedError(), "c1": failed(ValueError("bad"))})
    assert found.startswith("student b: its process died")


def test_of_several_errors_that_workers_raised_the_first_one_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    found = message(monkeypatch, {"a0": PENDING, "b1": failed(ValueError("bad")), "c0": failed(TypeError("worse"))})
    assert found.startswith("student b: ValueError: bad")


@pytest.mark.parametrize("rank", [0, 1])
def test_a_timeout_names_the_students_that_are_late(monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    assert message(monkeypatch, {f"b{rank}": PENDING, "a0": ELSEWHERE}).startswith("student b: no answer within 3 s")
    assert message(monkeypatch, {"a1": PENDING, f"c{rank}": PENDING}).startswith("student a, student c: no answer")


def test_all_are_named_if_it_cannot_be_told_who_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """The value of one arrived just after the timeout."""

    def late(references: Any, timeout: float) -> Any:
        raise GetTimeoutError("late")

    pretend(monkeypatch, {"a": 1, "b": 2})
    monkeypatch.setattr(ray, "get", late)
    with pytest.raises(PeerLostError, match=r"^student a, student b: no answer within 3 s"):
        RayRpc().get_all({"student a": ["a"], "student b": ["b"]}, 3.0)


def test_values_of_actors_come_by_name_and_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, {"a0": "first", "a1": "second", "b0": "third"})
    found = RayRpc().get_all({"student a": ["a0", "a1"], "nobody": [], "student b": ["b0"]}, 3.0)
    assert found == {"student a": ["first", "second"], "nobody": [], "student b": ["third"]}
