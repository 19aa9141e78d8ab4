"""Warnings of tasks of which hardly anything is replayed."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_l4.text.scarce_replay import scarce_replay


def rows(task: str, valid: int, dropped: int, reason: str = "no answer token") -> list[dict[str, Any]]:
    return [{"task": task, "valid": True, "reason": ""}] * valid + [
        {"task": task, "valid": False, "reason": reason}
    ] * dropped


@pytest.mark.parametrize(
    ("valid", "dropped", "words"),
    [
        (0, 24, ["0 of 24 generated examples of a", "no answer token: 24", "nothing of it is replayed"]),
        (11, 13, ["11 of 24", "no answer token: 13", "little of it is replayed", "training.lm_weight"]),
        (12, 12, []),
        (24, 0, []),
        (0, 1, ["0 of 1"]),
    ],
)
def test_fewer_than_half_draw_a_warning(valid: int, dropped: int, words: list[str]) -> None:
    found = scarce_replay(rows("a", valid, dropped))
    assert len(found) == bool(words)
    assert all(word in found[0] for word in words)


def test_a_task_is_judged_on_its_own() -> None:
    """Half of all examples are valid, but none of one task."""
    (warning,) = scarce_replay([*rows("a", 12, 0), *rows("b", 0, 12, "several answer tokens")])
    assert "0 of 12 generated examples of b" in warning and "several answer tokens: 12" in warning


def test_students_that_replay_their_own_are_judged_one_by_one() -> None:
    """With ``replay.generator: own`` all get as many as the student with the fewest: here none."""
    made = [row | {"student": student} for student in (0, 1) for row in rows("a", 12 * (1 - student), 12 * student)]
    (warning,) = scarce_replay(made)
    assert warning.startswith("0 of 12 generated examples of a by student 1 are valid")


@given(st.dictionaries(st.sampled_from("abc"), st.tuples(st.integers(0, 9), st.integers(0, 9))))
def test_there_is_one_warning_for_each_scarce_task(counts: dict[str, tuple[int, int]]) -> None:
    found = scarce_replay(row for task, (valid, dropped) in counts.items() for row in rows(task, valid, dropped))
    scarce = [task for task, (valid, dropped) in counts.items() if valid < dropped]
    assert [warning.split(" of ")[2][0] for warning in found] == scarce
