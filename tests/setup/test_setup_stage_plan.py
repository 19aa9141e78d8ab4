"""The stage plan: every stage is learned once and in order, and no worker learns two at a time."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_l4.methods import METHODS, complete, get_method, isolated, taught
from ray_l4.setup.setup import Setup
from ray_l4.setup.stage_plan import Assignment, StagePlan, most_slots
from tests.learner import learner_fixtures as small

TOKENIZER = small.tokenizer()


def setup_of(method: str, tasks: int, peers: int = 1, schedule: str = "simultaneous") -> Setup:
    """Return a set-up of so many tasks, without data."""
    names = [f"task{number}" for number in range(tasks)]
    row = get_method(method)
    tables = {name: pa.table({"row": range(3)}) for name in names}
    config = small.experiment(stream=names, method=method, distillation={"schedule": schedule})
    return Setup(config, row, row.graph(peers), TOKENIZER, 64, tables, {})


def groups(plan: StagePlan, done: int = 0) -> Iterator[list[Assignment]]:
    """The assignments of a run after ``done`` stages, as far as nobody is lost: those that go side by side together."""
    while done < len(plan.setup.stages):
        together = plan.assignments(done, plan.setup.topology.students)
        yield together
        done = max(own.stage for own in together) + 1


methods = st.sampled_from(sorted(METHODS))
tasks = st.integers(1, 7)


@given(methods, tasks, st.integers(1, 9), st.data())
def test_every_stage_that_is_not_done_is_learned_once_and_in_order(
    method: str, tasks: int, slots: int, data: st.DataObject
) -> None:
    setup = setup_of(method, tasks)
    done = data.draw(st.integers(0, len(setup.stages)))
    plan = StagePlan.of(setup, max(slots, setup.topology.size))
    found = list(groups(plan, done))
    assert [own.stage for together in found for own in together] == list(range(done, len(setup.stages)))
    for together in found:
        assert len({own.slot for own in together}) == len(together) <= plan.num_slots
        assert all(0 <= own.slot < plan.num_slots for own in together)


@given(methods, tasks, st.integers(1, 4))
def test_in_a_stream_all_students_learn_the_same_stage_and_teachers_none(method: str, tasks: int, peers: int) -> None:
    setup = setup_of(method, tasks, peers)
    if setup.method.stages == "separate":
        return
    plan = StagePlan.of(setup, setup.topology.size)
    for stage, together in enumerate(groups(plan)):
        assert together == [Assignment(student, student, stage) for student in setup.topology.students]
        assert not {own.slot for own in together} & setup.topology.frozen


@given(tasks, st.integers(1, 9))
def test_independent_models_use_all_the_room_there_is(tasks: int, slots: int) -> None:
    plan = StagePlan.of(setup_of("single-qa", tasks), slots)
    assert plan.peers == [0] * min(slots, tasks), "all are peer 0, so it does not matter which worker trains which"
    sizes = [len(together) for together in groups(plan)]
    assert all(size == plan.num_slots for size in sizes[:-1])
    assert all(own.student == 0 for together in groups(plan) for own in together)


@pytest.mark.parametrize(
    ("method", "peers", "expected"),
    [("l4", 3, [0, 1, 2]), ("lwf", 1, [0, 1]), ("l2kd-seq", 1, [0]), ("multi-qa", 1, [0])],
)
def test_peers_of_a_topology_keep_their_numbers(method: str, peers: int, expected: list[int]) -> None:
    plan = StagePlan.of(setup_of(method, 2, peers), most_slots=8)
    assert plan.peers == expected
    assert plan.num_slots == len(expected)


def test_students_that_are_lost_are_assigned_nothing() -> None:
    plan = StagePlan.of(setup_of("l4", 3, peers=4), 4)
    present = complete(4).without([1])
    assert plan.assignments(1, present.students) == [Assignment(slot, slot, 1) for slot in (0, 2, 3)]


@pytest.mark.parametrize(
    ("method", "stages", "anew", "names"),
    [
        ("l4", ["task0", "task1", "task2"], False, ["student-0", "student-1"]),
        ("single-qa", ["task0", "task1", "task2"], True, ["task0", "task1"]),
        ("multi-qa", ["all"], False, ["student-0"]),
    ],
    ids=["stream", "separate", "union"],
)
def test_kinds_of_stages(method: str, stages: list[str], anew: bool, names: list[str]) -> None:
    """Curves have the names of students, or of tasks where models are trained side by side."""
    setup = setup_of(method, 3, peers=2 if method == "l4" else 1)
    plan = StagePlan.of(setup, most_slots=2)
    assert [stage.name for stage in setup.stages] == stages
    assert plan.begins_anew is anew
    first = next(groups(plan))
    assert [plan.curve_name(own) for own in first] == names


@pytest.mark.parametrize(
    ("method", "students", "expected"),
    [
        ("l4", 3, 3),
        ("single-qa", 1, 5),
        ("multi-qa", 1, 1),
        ("multi-seq-kd", 1, 5),
        ("l2kd-word", 2, 5),
        ("l2kd-seq", 7, 7),
        ("lwf", 1, 1),
    ],
)
def test_slots_that_can_be_busy_at_the_same_time(method: str, students: int, expected: int) -> None:
    """Task teachers are trained independently of each other before the students, in the same slots."""
    assert most_slots(setup_of(method, 5), students) == expected


@pytest.mark.parametrize("peers", [1, 3])
def test_before_the_first_stage_a_student_has_no_earlier_self_to_learn_from(peers: int) -> None:
    plan = StagePlan.of(setup_of("lwf", 2, peers), 8)
    first, second = (plan.topology_of(stage, taught(peers)) for stage in range(2))
    assert first == isolated(peers + 1)
    assert second == taught(peers)


def test_in_every_stage_the_lost_are_left_out() -> None:
    plan = StagePlan.of(setup_of("l4", 2, peers=3), 3)
    present = complete(3).without([0])
    assert [plan.topology_of(stage, present) for stage in range(2)] == [present, present]


@given(st.dictionaries(st.integers(0, 5), st.tuples(st.integers(0, 50), st.integers(1, 50)), min_size=1))
def test_how_an_epoch_is_divided_into_passes(spans: dict[int, tuple[int, int]]) -> None:
    """One pass for all students side by side, or a pass for each; either way every student learns its own steps."""
    steps = {slot: range(first, first + count) for slot, (first, count) in sorted(spans.items())}
    together = StagePlan.of(setup_of("l4", 2, peers=6), 6)
    assert list(together.passes(steps)) == [steps]
    in_turn = StagePlan.of(setup_of("l4", 2, peers=6, schedule="alternate_epochs"), 6)
    passes = list(in_turn.passes(steps))
    assert [list(own) for own in passes] == [[slot] for slot in steps]
    assert {slot: own for each in passes for slot, own in each.items()} == steps
