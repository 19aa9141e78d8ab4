"""Continual-learning metrics: hand-computed matrices, missing cells, invariants."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_l4.errors import DataError
from ray_l4.metrics.continual import (
    ScoreMatrix,
    average_accuracy,
    average_incremental_accuracy,
    backward_transfer,
    forgetting,
    forgetting_by_task,
    forward_transfer,
)

R = [[80.0, 10.0, 5.0], [70.0, 60.0, 20.0], [75.0, 40.0, 90.0]]
BASELINE = [1.0, 2.0, 3.0]

ALL: list[Callable[[ScoreMatrix], float | None]] = [
    average_accuracy,
    average_incremental_accuracy,
    forgetting,
    backward_transfer,
    lambda matrix: forward_transfer(matrix, [0.0] * len(matrix[0])),
]


def without(stage: int, task: int) -> list[list[float | None]]:
    return [[None if (i, j) == (stage, task) else cell for j, cell in enumerate(row)] for i, row in enumerate(R)]


def test_hand_computed_values() -> None:
    assert average_accuracy(R) == pytest.approx((75 + 40 + 90) / 3)
    assert average_incremental_accuracy(R) == pytest.approx((80 + (70 + 60) / 2 + (75 + 40 + 90) / 3) / 3)
    assert forgetting(R) == pytest.approx((5 + 20) / 2)
    assert backward_transfer(R) == pytest.approx(((75 - 80) + (40 - 60)) / 2)
    assert forward_transfer(R, BASELINE) == pytest.approx(((10 - 2) + (20 - 3)) / 2)


def test_forgetting_takes_the_maximum_over_all_rows() -> None:
    improved = [[50.0, 70.0], [60.0, 65.0]]
    assert forgetting(improved) == 0.0  # the last row is the best; the last task does not count
    assert backward_transfer(improved) == 10.0
    zero_shot = [[50.0, 95.0, 0.0], [50.0, 60.0, 0.0], [50.0, 60.0, 1.0]]
    assert forgetting(zero_shot) == pytest.approx((0 + 35) / 2)  # a row before the task was learned


def test_per_epoch_trajectory_reproduces_the_papers_table() -> None:
    # L4, Table 3, WOZ and SQL of L2KD: final 81.4 and 59.6, forgetting 5.3 and 4.8, average 5.05.
    matrix = [[84.0, 0.0, 0.0], [82.0, 62.0, 0.0], [81.4, 59.6, 26.1]]
    epochs = [[86.7, None, None], [85.0, 64.4, None]]
    assert forgetting(matrix, epochs) == pytest.approx((5.3 + 4.8) / 2)
    assert forgetting(matrix) == pytest.approx((2.6 + 2.4) / 2)


def test_a_single_task_has_no_forgetting_or_transfer() -> None:
    assert average_accuracy([[70.0]]) == average_incremental_accuracy([[70.0]]) == 70.0
    assert forgetting([[70.0]]) is backward_transfer([[70.0]]) is forward_transfer([[70.0]], [0.0]) is None


def test_a_missing_cell_makes_only_the_metrics_that_need_it_undefined() -> None:
    def values(stage: int, task: int) -> list[bool]:
        return [function(without(stage, task)) is not None for function in ALL]

    #                       AA     AIA    FM     BWT    FWT
    assert values(2, 0) == [False, False, False, False, True]  # final score
    assert values(2, 2) == [False, False, True, True, True]  # final score of the last task
    assert values(0, 0) == [True, False, False, False, True]  # right after learning
    assert values(1, 0) == [True, False, False, True, True]  # between
    assert values(0, 1) == [True, True, True, True, False]  # right before learning
    assert values(0, 2) == [True, True, True, True, True]  # long before learning
    assert forgetting(without(0, 1)) == forgetting(R)
    assert forward_transfer(R, [None, 2.0, None]) is None
    assert forward_transfer(R, [None, 2.0, 3.0]) == forward_transfer(R, BASELINE)


def test_fewer_stages_than_tasks() -> None:
    multitask = [[80.0, 60.0, 90.0]]
    assert average_accuracy(multitask) == pytest.approx(230 / 3)
    assert [function(multitask) for function in ALL[1:]] == [None] * 4
    assert [function(R[:2]) for function in ALL[1:]] == [None] * 4
    assert backward_transfer([row[:2] for row in R[:2]]) == -10.0


COMING_BACK = [[80.0, 10.0], [60.0, 50.0], [90.0, 30.0], [70.0, 60.0]]
"""Scores after learning task 0, 1, 0 again, and 1 again."""


def test_hand_computed_values_of_a_stream_in_which_tasks_come_back() -> None:
    learned = [0, 1, 0, 1]
    assert average_accuracy(COMING_BACK) == 65.0
    assert average_incremental_accuracy(COMING_BACK, learned) == pytest.approx((80 + 55 + 60 + 65) / 4)
    assert forgetting_by_task(COMING_BACK, (), learned) == {0: 20.0}, "from 90, after the second time, to 70"
    assert forgetting_by_task(COMING_BACK[:3], (), learned[:3]) == {1: 20.0}, "task 0 was learned last"
    assert backward_transfer(COMING_BACK, learned) == 70 - 90, "from the last stage that learned it"
    assert backward_transfer(COMING_BACK[:3], learned[:3]) == 30 - 50
    assert forward_transfer(COMING_BACK, [1.0, 2.0], learned) == 10 - 2, "before it was learned first"
    assert forward_transfer([[80.0], [90.0]], [1.0], [0, 0]) is None
    assert forgetting([[80.0], [90.0]], (), [0, 0]) is None, "there is only one task"
    assert average_incremental_accuracy([[80.0], [90.0]], [0, 0]) == 85.0


def test_a_task_that_came_late_needs_no_scores_of_before() -> None:
    late = [[80.0, None], [60.0, None], [70.0, 50.0], [65.0, 40.0]]
    assert forgetting_by_task(late, (), [0, 0, 1, 0]) == {1: 10.0}
    assert average_incremental_accuracy(late, [0, 0, 1, 0]) == pytest.approx((80 + 60 + 60 + 52.5) / 4)
    assert forward_transfer(late, [0.0, 0.0], [0, 0, 1, 0]) is None


@pytest.mark.parametrize("learned", [[0], [0, 1, 2, 3], [0, 1, 3], [0, 1, -1]])
def test_tasks_that_do_not_fit_the_matrix_are_refused(learned: list[int]) -> None:
    with pytest.raises(DataError, match="one of the columns 0 to 2 for each of 3 stages"):
        forgetting(R, (), learned)


@given(st.permutations(range(3)))
def test_the_order_of_the_columns_does_not_matter(order: list[int]) -> None:
    learned = [list(order).index(task) for task in range(3)]
    moved = [[row[task] for task in order] for row in R]
    assert forgetting(moved, (), learned) == pytest.approx(forgetting(R))
    assert backward_transfer(moved, learned) == pytest.approx(backward_transfer(R))
    assert forward_transfer(moved, [BASELINE[task] for task in order], learned) == forward_transfer(R, BASELINE)
    assert average_incremental_accuracy(moved, learned) == pytest.approx(average_incremental_accuracy(R))


@pytest.mark.parametrize("matrix", [[], [[]], [[1.0, 2.0], [1.0]]])
@pytest.mark.parametrize("function", ALL[:4])
def test_malformed_matrices_are_refused(function: Callable[[ScoreMatrix], float | None], matrix: ScoreMatrix) -> None:
    with pytest.raises(DataError, match="rows of equal length"):
        function(matrix)


def test_rows_and_baselines_of_another_length_are_refused() -> None:
    with pytest.raises(DataError, match="baseline has 2 scores but the matrix has 3 tasks"):
        forward_transfer(R, [1.0, 2.0])
    with pytest.raises(DataError, match="needs 3 scores"):
        forgetting(R, [[1.0, 2.0]])
    with pytest.raises(DataError, match="rows of equal length"):
        forward_transfer([], [])
    with pytest.raises(DataError, match="rows of equal length"):
        forgetting([], [[1.0]])


def matrices(least: int) -> st.SearchStrategy[list[list[float]]]:
    def square(size: int) -> st.SearchStrategy[list[list[float]]]:
        row = st.lists(st.floats(0, 100), min_size=size, max_size=size)
        return st.lists(row, min_size=size, max_size=size)

    return st.integers(least, 5).flatmap(square)


@given(matrices(least=1))
def test_averages_are_percentages(matrix: list[list[float]]) -> None:
    for function in (average_accuracy, average_incremental_accuracy):
        value = function(matrix)
        assert value is not None and -1e-9 <= value <= 100 + 1e-9


@given(matrices(least=2))
def test_forgetting_is_at_least_zero_and_at_least_the_lost_transfer(matrix: list[list[float]]) -> None:
    lost, transfer = forgetting(matrix), backward_transfer(matrix)
    assert lost is not None and transfer is not None
    assert lost >= 0
    assert lost >= -transfer - 1e-9


@given(matrices(least=2), st.lists(st.floats(0, 100), min_size=5, max_size=5))
def test_a_trajectory_only_adds_to_forgetting(matrix: list[list[float]], epoch: list[float]) -> None:
    before, after = forgetting(matrix), forgetting(matrix, [epoch[: len(matrix)]])
    assert before is not None and after is not None and after >= before
    assert forgetting(matrix, matrix) == before


@given(matrices(least=2))
def test_forgetting_equals_lost_transfer_for_falling_scores(matrix: list[list[float]]) -> None:
    size = len(matrix)
    best_first = [sorted((row[task] for row in matrix), reverse=True) for task in range(size)]
    falling = [[best_first[task][stage] if task <= stage else 0.0 for task in range(size)] for stage in range(size)]
    lost, transfer = forgetting(falling), backward_transfer(falling)
    assert lost is not None and transfer is not None
    assert lost == pytest.approx(-transfer)
