"""Who learns what, and with whom: every stage once, in order, and nobody in two places."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_l4.methods import METHODS, get_method
from ray_l4.setup.setup import Setup
from ray_l4.setup.stage_plan import Seat, groups, passes, peers_of
from tests.learner import learner_fixtures as small

TOKENIZER = small.tokenizer()


def setup_of(method: str, tasks: int, peers: int = 1) -> Setup:
    """A set-up of so many tasks, without data."""
    names = [f"task{number}" for number in range(tasks)]
    row = get_method(method)
    tables = {name: pa.table({"row": range(3)}) for name in names}
    return Setup(small.experiment(stream=names, method=method), row, row.graph(peers), TOKENIZER, 64, tables, {})


methods = st.sampled_from(sorted(METHODS))
tasks = st.integers(1, 7)


@given(methods, tasks, st.integers(1, 9), st.data())
def test_every_stage_that_is_not_done_is_learned_once_and_in_order(
    method: str, tasks: int, places: int, data: st.DataObject
) -> None:
    setup = setup_of(method, tasks)
    done = data.draw(st.integers(0, len(setup.stages)))
    workers = len(peers_of(setup, max(places, setup.topology.size)))
    found = list(groups(setup, done, workers))
    assert [seat.stage for seats in found for seat in seats] == list(range(done, len(setup.stages)))
    for seats in found:
        assert len({seat.worker for seat in seats}) == len(seats) <= workers


@given(methods, tasks, st.integers(1, 4))
def test_in_a_stream_all_students_learn_the_same_stage_and_teachers_none(method: str, tasks: int, peers: int) -> None:
    setup = setup_of(method, tasks, peers)
    if setup.method.stages == "separate":
        return
    for stage, seats in enumerate(groups(setup, 0, setup.topology.size)):
        assert seats == [Seat(student, student, stage) for student in setup.topology.students]
        assert not {seat.worker for seat in seats} & setup.topology.frozen


@given(tasks, st.integers(1, 9))
def test_independent_models_use_all_the_room_there_is(tasks: int, places: int) -> None:
    setup = setup_of("single-qa", tasks)
    peers = peers_of(setup, places)
    assert peers == [0] * min(places, tasks), "all go by the same number, so that it does not matter who learns what"
    sizes = [len(seats) for seats in groups(setup, 0, len(peers))]
    assert all(size == len(peers) for size in sizes[:-1])
    assert all(seat.student == 0 for seats in groups(setup, 0, len(peers)) for seat in seats)


@pytest.mark.parametrize(
    ("method", "peers", "expected"),
    [("l4", 3, [0, 1, 2]), ("lwf", 1, [0, 1]), ("l2kd-seq", 1, [0]), ("multi-qa", 1, [0])],
)
def test_peers_of_a_graph_go_by_their_own_numbers(method: str, peers: int, expected: list[int]) -> None:
    assert peers_of(setup_of(method, 2, peers), places=8) == expected


@given(st.dictionaries(st.integers(0, 5), st.tuples(st.integers(0, 50), st.integers(1, 50)), min_size=1))
def test_how_an_epoch_goes(spans: dict[int, tuple[int, int]]) -> None:
    """Side by side in one pass, or a pass for each; either way everyone does its own steps."""
    steps = {worker: range(first, first + count) for worker, (first, count) in spans.items()}
    seats = [Seat(worker, worker, 0) for worker in sorted(steps)]
    assert passes(seats, steps, "simultaneous") == [steps]
    in_turn = passes(seats, steps, "alternate_epochs")
    assert [list(own) for own in in_turn] == [[seat.worker] for seat in seats]
    assert {worker: own for together in in_turn for worker, own in together.items()} == steps
