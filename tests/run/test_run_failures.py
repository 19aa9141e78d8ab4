"""Failures keep their cause: the error that a student raised is the one that ends the loop, whichever call it was."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from ray_l4.cluster.handles import StudentHandle
from ray_l4.cluster.membership import Membership
from ray_l4.cluster.rpc import LocalRpc
from ray_l4.config.cluster import ClusterConfig
from ray_l4.errors import ModelError, PeerError, PeerLostError, RayL4Error
from ray_l4.methods import complete, get_method, isolated, taught
from ray_l4.run.checkpoints import Checkpoints
from ray_l4.run.step_loop import StepRules
from ray_l4.setup.setup import Setup
from ray_l4.setup.stage_plan import Assignment
from ray_l4.workers.student import Student
from tests.cluster.cluster_fixtures import StandInSpawner
from tests.learner import learner_fixtures
from tests.run.run_fixtures import CALLS, ERRORS, FAILING_STUDENTS, bare_context, cluster, handles, train
from tests.run.worker_fixtures import FENCE, StandIn


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("who", FAILING_STUDENTS)
@pytest.mark.parametrize("step", [0, 1])
def test_a_failed_forward_ends_the_loop_with_its_own_error(who: str, error: RayL4Error, step: int) -> None:
    topology, number = FAILING_STUDENTS[who]
    students = [StandIn(peer) for peer in range(topology.size)]
    students[number].fail("forward", error, step)
    with pytest.raises(RayL4Error) as caught:
        train(handles(LocalRpc(), [(student,) for student in students]), topology)
    assert caught.value is error
    assert ("backward", step) not in students[number].done


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("method", ["forward", "predict"])
def test_a_failed_call_of_a_frozen_teacher_or_its_student_ends_the_loop_with_its_own_error(
    method: str, error: RayL4Error
) -> None:
    student, teacher = StandIn(0), StandIn(1)
    (student if method == "forward" else teacher).fail(method, error, 1)
    with pytest.raises(RayL4Error) as caught:
        train(handles(LocalRpc(), [(student,), (teacher,)]), taught(1))
    assert caught.value is error


@pytest.mark.parametrize("method", ["forward", "backward"])
def test_an_error_on_the_second_rank_ends_the_loop(method: str) -> None:
    """The first rank of every student succeeds; its figures alone would hide the error."""
    error = PeerLostError("student 1: one of its ranks is gone")
    ranks = [[StandIn(peer) for _ in range(2)] for peer in range(2)]
    ranks[1][1].fail(method, error, 1)
    with pytest.raises(PeerLostError) as caught:
        train(handles(LocalRpc(), ranks), complete(2))
    assert caught.value is error
    if method == "backward":
        assert ("backward", 1) in ranks[1][0].done


@pytest.mark.parametrize("method", CALLS)
@pytest.mark.parametrize("rank", [0, 1])
def test_whoever_waits_for_a_call_gets_the_error_of_any_rank(method: str, rank: int) -> None:
    error = ModelError("no such file")
    ranks = [StandIn(0), StandIn(0)]
    ranks[rank].fail(method, error)
    student = StudentHandle(0, LocalRpc(), ranks)
    with pytest.raises(ModelError) as caught:
        student.wait(CALLS[method](student), 1.0, method)
    assert caught.value is error


def two_ranks(folder: Path, method: str, error: RayL4Error) -> tuple[Checkpoints, Membership, ThreadPoolExecutor]:
    """Checkpoints of one student, whose second rank fails a call."""
    config = learner_fixtures.experiment()
    setup = Setup(config, get_method("ewc"), isolated(1), learner_fixtures.tokenizer(), 64, {}, {})
    ranks = [DescribedStandIn(0), DescribedStandIn(0)]
    ranks[1].fail(method, error)
    membership = Membership(StandInSpawner(lambda slot: ranks, [0]), ClusterConfig(), setup.topology)
    disk = ThreadPoolExecutor(1)
    return Checkpoints(bare_context(setup, folder), membership, disk), membership, disk


class DescribedStandIn(StandIn):
    """Has a model that can be described."""

    def describe(self) -> dict[str, Any]:
        return {}


class NoScoring:
    """Takes requests and does nothing."""

    def request(self, *arguments: Any) -> None:
        pass


def test_a_checkpoint_is_not_written_if_a_rank_could_not_give_its_share(tmp_path: Path) -> None:
    error = PeerLostError("student 0: one of its ranks is gone")
    checkpoints, _, disk = two_ranks(tmp_path, "weights", error)
    with disk, pytest.raises(PeerLostError) as caught:
        checkpoints.keep(Assignment(0, 0, 0), 1, NoScoring()).result()  # type: ignore[arg-type]
    assert caught.value is error
    assert not (tmp_path / "checkpoints").exists()


def test_what_a_guard_knows_is_not_written_if_a_rank_failed(tmp_path: Path) -> None:
    error = PeerError("student 0: the importance is not finite")
    checkpoints, _, disk = two_ranks(tmp_path, "consolidate", error)
    with disk, pytest.raises(PeerError) as caught:
        checkpoints.consolidate([Assignment(0, 0, 0)])
    assert caught.value is error
    assert not (tmp_path / "guards").exists()


# --- the same with real students


def real_students(method: str, count: int) -> tuple[list[Student], pa.Table]:
    """Students of tiny models in this process, that have begun a stage."""
    tok = learner_fixtures.tokenizer()
    row = get_method(method)
    setup = Setup(learner_fixtures.experiment(method=method), row, row.graph(count), tok, 64, {}, {})
    students = [Student(peer, setup, cluster("in_process")) for peer in range(setup.topology.size)]
    tokens = learner_fixtures.tokens(tok)
    for student in students:
        student.begin(FENCE, 1, tokens)
    return students, tokens


@pytest.mark.parametrize(("method", "count", "who"), [("lamol", 1, 0), ("l4", 2, 0), ("l4", 2, 1)])
def test_a_link_that_fails_in_forward_is_not_taken_for_a_missing_forward(
    monkeypatch: pytest.MonkeyPatch, method: str, count: int, who: int
) -> None:
    """A link notices in ``forward`` that a reader of the step before is gone. The loss has to be seen as a loss."""
    students, _ = real_students(method, count)
    error = PeerLostError(f"student {who}: a peer is gone")

    def publish(*arguments: Any, **options: Any) -> None:
        raise error

    topology = complete(count) if count > 1 else isolated(1)
    assert len(train(handles(LocalRpc(), [(student,) for student in students]), topology, range(1))) == 1
    monkeypatch.setattr(students[who]._link, "publish", publish)
    with pytest.raises(PeerLostError) as caught:
        train(handles(LocalRpc(), [(own,) for own in students]), topology, range(1, 3), StepRules(1, 1.0))
    assert caught.value is error
    assert students[who].rejoin(FENCE + 1) == 1, "the step that failed is not learned"
