"""Membership: who is alive, which calls count, and how those that are present go on after a loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_l4.cluster import membership as membership_module
from ray_l4.cluster.membership import Membership, levelled
from ray_l4.cluster.rpc import LocalRpc
from ray_l4.config.cluster import ClusterConfig
from ray_l4.errors import ModelError, PeerError, PeerLostError, RayL4Error
from ray_l4.methods import Topology, complete, taught
from ray_l4.workers.rendezvous import Rendezvous, RendezvousStore
from tests.cluster.cluster_fixtures import StandInSpawner

ONE_RANK = ClusterConfig.model_validate({"timeouts": {"start": 7, "step": 30}})
COLLECTIVE = ClusterConfig.model_validate({"exchange": {"transport": "collective"}})
TWO_RANKS = ClusterConfig.model_validate(
    {"students": {"shards_per_student": 2}, "exchange": {"transport": "collective"}}
)


@dataclass
class Member:
    """A rank of a student, which notes who it met and under which fence it serves."""

    slot: int
    next_step: int = 0
    error: RayL4Error | None = None
    """The error of every call."""
    fence: int = 0
    met: list[tuple[Rendezvous, Mapping[int, int]]] = field(default_factory=list)

    def ready(self) -> None:
        self._answer()

    def rejoin(self, fence: int) -> int:
        self._answer()
        self.fence = fence
        return self.next_step

    def meet(self, rendezvous: Rendezvous, ranks: Mapping[int, int]) -> None:
        self._answer()
        self.met.append((rendezvous, ranks))

    def _answer(self) -> None:
        if self.error is not None:
            raise self.error


class NotingRpc(LocalRpc):
    """Notes for whom and how long is waited, and who is ended."""

    def __init__(self) -> None:
        self.waits: list[tuple[str, float]] = []
        self.ended: list[Any] = []

    def get_all(self, references: Mapping[str, Sequence[Any]], timeout: float) -> dict[str, list[Any]]:
        self.waits += [(who, timeout) for who in references]
        return super().get_all(references, timeout)

    def end(self, worker: Any) -> None:
        self.ended.append(worker)


class Team:
    """A membership of stand-ins."""

    def __init__(
        self,
        topology: Topology,
        cluster: ClusterConfig = ONE_RANK,
        lost: Mapping[int, str] | None = None,
        make: Callable[[int], Member] = Member,
    ) -> None:
        self.members: list[Member] = []
        """In the order in which they were started."""
        self.rpc = NotingRpc()
        self._make = make
        self._ranks = cluster.students.shards_per_student
        store: Any = RendezvousStore("host", SimpleNamespace(port=1), 30.0)  # type: ignore[arg-type]
        self.spawner = StandInSpawner(self._start, range(topology.size), self.rpc, store)
        self.membership = Membership(self.spawner, cluster, topology, lost)

    def _start(self, slot: int) -> list[Member]:
        ranks = [self._make(slot) for _ in range(self._ranks)]
        self.members += ranks
        return ranks


# --- who is there


def test_all_students_are_started_but_those_that_were_lost_before() -> None:
    team = Team(complete(4), lost={2: "its node was gone"})
    assert team.spawner.started == [0, 1, 3]
    assert team.membership.present == [0, 1, 3]
    assert team.membership.lost == {2: "its node was gone"}
    assert team.membership.topology == complete(4).without([2])
    assert [len(student.ranks) for student in team.membership.students] == [1, 1, 0, 1]
    assert [student.slot for student in team.membership.students] == [0, 1, 2, 3]


def test_models_that_are_trained_independently_have_more_slots_than_the_topology_has_peers() -> None:
    spawner = StandInSpawner(lambda slot: [Member(slot)], [0, 0, 0])
    membership = Membership(spawner, ONE_RANK, complete(1))
    assert membership.present == [0, 1, 2]
    assert membership.topology == complete(1)


def test_the_fence_grows_with_every_raise_and_every_roll_call() -> None:
    membership = Team(complete(2)).membership
    fences = [membership.fence]
    for change in (membership.raise_fence, membership.roll_call, membership.raise_fence):
        change()
        fences.append(membership.fence)
    assert fences == sorted(set(fences))
    assert membership.raise_fence() == membership.fence


def test_lost_students_cannot_be_changed_from_outside() -> None:
    membership = Team(complete(2)).membership
    membership.lost[0] = "a mistake"  # type: ignore[index]
    assert membership.lost == {} and membership.present == [0, 1]


# --- start


def test_start_waits_for_every_student() -> None:
    team = Team(complete(3), lost={1: "gone"})
    team.membership.await_start()
    assert [own for own, _ in team.rpc.waits] == ["student 0, start", "student 2, start"]
    assert all(seconds == pytest.approx(7.0, abs=2.0) for _, seconds in team.rpc.waits)


def test_what_keeps_a_student_from_starting_is_raised() -> None:
    error = ModelError("no such model")
    team = Team(complete(2))
    team.members[1].error = error
    with pytest.raises(ModelError) as caught:
        team.membership.await_start()
    assert caught.value is error


# --- roll call


def test_a_roll_call_tells_who_is_lost_and_where_the_others_are() -> None:
    team = Team(complete(4), lost={0: "lost before"})
    one, two, three = team.members
    one.next_step, three.next_step = 5, 6
    two.error = PeerLostError("student 2: its process died")
    roll = team.membership.roll_call()
    assert roll.lost == {2: "student 2: its process died"}
    assert roll.next_steps == {1: 5, 3: 6}
    assert [own.fence for own in team.members] == [1, 0, 1]
    assert team.membership.fence == 1
    assert team.membership.present == [1, 2, 3], "whether it is dropped or replaced is for others to say"


class WaitingRpc(NotingRpc):
    """One student hangs; the others answer only once it is ended, for they wait for its predictions."""

    def __init__(self, silent: int) -> None:
        super().__init__()
        self.silent = silent

    def silence(self, worker: Any) -> str | None:
        return "no sign of life for 60 s" if worker.slot == self.silent and worker not in self.ended else None

    def ready(self, references: Sequence[Any]) -> list[Any]:
        return list(references) if any(worker.slot == self.silent for worker in self.ended) else []


@pytest.mark.parametrize("silent", range(3))
def test_a_student_that_hangs_is_ended_before_those_that_wait_for_it_are_given_up(silent: int) -> None:
    team = Team(complete(3))
    rpc = WaitingRpc(silent)
    team.spawner.rpc = rpc
    membership = Membership(team.spawner, ONE_RANK, complete(3))
    roll = membership.roll_call()
    assert roll.lost == {silent: f"student {silent}, asked to rejoin within 30 s: no sign of life for 60 s"}
    assert set(roll.next_steps) == {0, 1, 2} - {silent}
    assert [worker.slot for worker in rpc.ended] == [silent]


def test_a_student_that_hangs_at_its_start_is_replaced_and_no_other() -> None:
    team = Team(complete(2))
    rpc = WaitingRpc(1)
    team.spawner.rpc = rpc
    membership = Membership(team.spawner, ONE_RANK, complete(2))
    before = list(membership.students)
    make = team.spawner.make

    def sound(slot: int) -> Sequence[Any]:
        rpc.silent = -1
        rpc.ready = list  # type: ignore[method-assign, assignment]
        return make(slot)

    team.spawner.make = sound
    membership.await_start()
    assert membership.students[0] is before[0] and membership.students[1] is not before[1]


def test_an_error_that_is_no_loss_ends_a_roll_call() -> None:
    team = Team(complete(2))
    team.members[1].error = PeerError("student 1: a defect")
    with pytest.raises(PeerError) as caught:
        team.membership.roll_call()
    assert caught.value is team.members[1].error


def test_one_deadline_holds_for_all_answers_of_a_roll_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Students answer side by side, so those that hang together cost one timeout and not one each."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(membership_module.time, "monotonic", lambda: clock.now)
    team = Team(complete(4))

    def wait(references: Mapping[str, Sequence[Any]], timeout: float) -> dict[str, list[Any]]:
        (who,) = references
        team.rpc.waits.append((who, timeout))
        clock.now += 20
        raise PeerLostError(f"{who}: no answer")

    monkeypatch.setattr(team.rpc, "get_all", wait)
    roll = team.membership.roll_call()
    assert set(roll.lost) == {0, 1, 2, 3}
    assert [seconds for _, seconds in team.rpc.waits] == [30.0, 10.0, 0.0, 0.0]
    assert all(how.startswith(f"student {slot}, asked to rejoin within 30 s: ") for slot, how in roll.lost.items())


def test_students_of_several_ranks_all_count_as_lost_and_are_not_asked() -> None:
    """Their ranks may wait for one that is gone, so none of them would answer."""
    team = Team(complete(3), TWO_RANKS, lost={1: "lost before"})
    roll = team.membership.roll_call()
    assert set(roll.lost) == {0, 2}
    assert roll.next_steps == {}
    assert team.rpc.waits == []
    assert team.membership.fence == 1


# --- dropped and replaced


def test_dropping_ends_the_workers_and_leaves_the_others_in_their_slots() -> None:
    team = Team(complete(4))
    membership, before = team.membership, list(team.membership.students)
    membership.drop({1: "it died"})
    assert team.rpc.ended == [team.members[1]]
    assert membership.present == [0, 2, 3]
    assert membership.lost == {1: "it died"}
    assert membership.topology == complete(4).without([1])
    assert [membership.students[slot] for slot in (0, 2, 3)] == [before[slot] for slot in (0, 2, 3)]
    assert membership.students[1].slot == 1 and not membership.students[1].ranks
    membership.drop({3: "it died too"})
    assert membership.lost == {1: "it died", 3: "it died too"}
    assert membership.topology == complete(4).without([1, 3])
    assert membership.roll_call().next_steps == {0: 0, 2: 0}, "those that were dropped are not asked"


def test_a_lost_teacher_is_no_longer_frozen() -> None:
    team = Team(taught(2))
    assert team.membership.topology.frozen == {2}
    team.membership.drop({2: "it died"})
    assert team.membership.topology == taught(2).without([2])
    assert not team.membership.topology.frozen and not team.membership.topology.edges


def test_a_replaced_student_is_a_new_one_in_the_same_slot() -> None:
    team = Team(complete(3))
    membership, before = team.membership, list(team.membership.students)
    membership.replace([1])
    assert team.spawner.started == [0, 1, 2, 1]
    assert team.rpc.ended == [team.members[1]]
    assert list(membership.students[1].ranks) == [team.members[3]]
    assert membership.students[1].slot == 1
    assert [membership.students[slot] for slot in (0, 2)] == [before[slot] for slot in (0, 2)]
    assert membership.lost == {} and membership.present == [0, 1, 2]
    assert membership.topology == complete(3)
    assert [who for who, _ in team.rpc.waits] == ["student 1, start"]


def test_all_ranks_of_a_replaced_student_are_ended() -> None:
    team = Team(complete(2), TWO_RANKS)
    team.membership.replace([0, 1])
    assert team.rpc.ended == team.members[:4]
    assert [list(student.ranks) for student in team.membership.students] == [team.members[4:6], team.members[6:]]


def test_replaced_students_start_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    team = Team(complete(3))
    started: list[list[int]] = []
    get_all = team.rpc.get_all

    def noting(references: Mapping[str, Sequence[Any]], timeout: float) -> dict[str, list[Any]]:
        started.append(list(team.spawner.started))
        return get_all(references, timeout)

    monkeypatch.setattr(team.rpc, "get_all", noting)
    team.membership.replace([0, 2])
    assert started == [[0, 1, 2, 0, 2]] * 2, "both are there before one is waited for"


def test_a_student_that_cannot_be_replaced_is_reported() -> None:
    team = Team(complete(2))
    error = PeerLostError("student 0, start: no answer")
    make_sound = team.spawner.make

    def make(slot: int) -> Sequence[Any]:
        ranks = make_sound(slot)
        ranks[0].error = error
        return ranks

    team.spawner.make = make
    with pytest.raises(PeerLostError) as caught:
        team.membership.replace([0])
    assert caught.value is error


def test_the_end_is_the_end_of_all_that_are_present() -> None:
    team = Team(complete(3), TWO_RANKS, lost={0: "gone"})
    team.membership.end()
    assert team.rpc.ended == team.members
    assert len(team.members) == 4


# --- process groups


def test_ranks_of_equal_number_form_a_group_and_number_their_peers_alike() -> None:
    team = Team(complete(4), TWO_RANKS, lost={1: "gone"})
    team.membership.form_groups()
    present = {0: 0, 2: 1, 3: 2}
    names = set()
    for slot, number in present.items():
        for rank, member in enumerate(team.membership.students[slot].ranks):
            ((rendezvous, ranks),) = member.met
            assert (rendezvous.rank, rendezvous.size, ranks) == (number, 3, present)
            assert rendezvous.name.endswith(f"/rank-{rank}")
            names.add((rank, rendezvous.name))
    assert len(names) == 2, "one group for each rank number"


def test_the_name_of_a_group_is_never_used_again() -> None:
    """Whatever leads to a new group: the next stage, students that go on without one, or one that is replaced."""
    team = Team(complete(3), COLLECTIVE)
    membership = team.membership

    def begin() -> None:
        membership.raise_fence()
        membership.form_groups()

    def go_on() -> None:
        team.members[2].error = PeerLostError("it died")
        membership.drop(membership.roll_call().lost)
        membership.form_groups()

    def begin_again() -> None:
        membership.roll_call()
        membership.replace([0])
        begin()

    for change in (begin, begin, go_on, begin, begin_again):
        change()
    names = [[rendezvous.name for rendezvous, _ in member.met] for member in team.members]
    assert len(set(names[1])) == len(names[1]) == 5
    assert [len(own) for own in names] == [4, 5, 2, 1]
    sizes = [rendezvous.size for rendezvous, _ in team.members[1].met]
    assert sizes == [3, 3, 2, 2, 2]


@pytest.mark.parametrize("transport", ["object_store", "in_process"])
def test_links_that_need_no_group_form_none(transport: str) -> None:
    team = Team(complete(2), ClusterConfig.model_validate({"exchange": {"transport": transport}}))
    team.membership.form_groups()
    assert [member.met for member in team.members] == [[], []]


def test_ranks_do_not_meet_their_peers_through_the_object_store() -> None:
    profile = {"students": {"shards_per_student": 2}, "exchange": {"transport": "object_store"}}
    team = Team(complete(2), ClusterConfig.model_validate(profile))
    team.membership.form_groups()
    assert not any(member.met for member in team.members)


def test_a_member_that_does_not_come_to_a_group_is_lost() -> None:
    team = Team(complete(2), COLLECTIVE)
    team.members[1].error = PeerLostError("rank 1 of 2 did not meet the others")
    with pytest.raises(PeerLostError) as caught:
        team.membership.form_groups()
    assert caught.value is team.members[1].error


# --- levelling


def test_students_behind_catch_up_before_all_go_on_together() -> None:
    spans = levelled({0: 5, 1: 7, 2: 5}, {0: 10, 1: 10, 2: 10})
    assert spans == [{0: range(5, 7), 2: range(5, 7)}, {0: range(7, 10), 1: range(7, 10), 2: range(7, 10)}]


def test_students_at_the_same_step_go_on_together_at_once() -> None:
    assert levelled({0: 4, 1: 4}, {0: 9, 1: 9}) == [{0: range(4, 9), 1: range(4, 9)}]


def test_students_whose_turn_it_is_not_are_left_alone() -> None:
    """They predict for the one that learns, whatever their own next step is."""
    assert levelled({0: 3, 1: 9, 2: 0}, {0: 8}) == [{0: range(3, 8)}]


progress = st.dictionaries(st.integers(0, 5), st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=1, max_size=5)


@given(progress)
def test_everyone_learns_each_of_its_steps_once_and_in_order(positions: dict[int, tuple[int, int]]) -> None:
    next_steps = {slot: done for slot, (done, _) in positions.items()}
    ends = {slot: done + remaining for slot, (done, remaining) in positions.items()}
    spans = levelled(next_steps, ends)
    for slot, end in ends.items():
        learned = [step for span in spans for step in span.get(slot, ())]
        assert learned == list(range(next_steps[slot], end))


@given(progress, st.integers(0, 12))
def test_whoever_learns_side_by_side_is_at_the_same_step(positions: dict[int, tuple[int, int]], more: int) -> None:
    """Students that depend on each other have the same batches, so they end their stage at the same step."""
    next_steps = {slot: done for slot, (done, _) in positions.items()}
    end = max(next_steps.values()) + more
    spans = levelled(next_steps, dict.fromkeys(next_steps, end))
    assert len(spans) == len(set(next_steps.values()))
    assert spans[-1].keys() == next_steps.keys()
    reached = dict(next_steps)
    for span in spans:
        assert len(set(span.values())) == 1
        (start,) = {steps.start for steps in span.values()}
        assert start == min(reached.values()), "nobody goes ahead while others are behind"
        assert span.keys() == {slot for slot, step in reached.items() if step == start}
        reached |= {slot: steps.stop for slot, steps in span.items()}
