"""Replay: the validity filter on ids, the table of pseudo-examples, and the worked counts.

REFERENCE.md#worked-values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_l4.errors import ModelError
from ray_l4.text.replay import PseudoExample, generated_table, num_replayed_per_task, parse_generated
from ray_l4.text.tokenizer import TaskTokenizer
from ray_l4.text.tokens import TOKENS


@dataclass(frozen=True)
class Ids:
    """Special ids 0 and 1: a filter on strings of decimals would remove digits of other ids (REFERENCE.md#defects)."""

    eos: int = 0
    ans: int = 1
    pad: int = 2
    lm_start: tuple[int, ...] = ()
    lm_end: tuple[int, ...] = (0,)


GEN = 7


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([GEN, 11, 10, 1, 20, 101, 0], ((11, 10), (20, 101))),
        ([GEN, 11, 1, 20], ((11,), (20,))),  # truncated at the maximum length: no EOS
        ([GEN, 1, 20, 0], ((), (20,))),
        ([GEN, 11, 1, 0], ((11,), ())),
        ([GEN, 1], ((), ())),
        ([GEN, 11, 8, 1, 9, 2, 0], ((11, 8), (9, 2))),  # tokens of other tasks and PAD are kept
        ([GEN, 11, 1, 20, 0, 1, 30, 0], ((11,), (20,))),  # ids after the first EOS are ignored
    ],
)
def test_valid_pseudo_examples(ids: list[int], expected: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    assert parse_generated(ids, Ids()) == PseudoExample(GEN, *expected)


@pytest.mark.parametrize(
    ("ids", "reason"),
    [
        ([GEN, 10, 11, 0], "no answer token"),
        ([GEN, 10, 0, 1, 20], "no answer token"),
        ([GEN], "no answer token"),
        ([GEN, 10, 1, 20, 1, 0], "several answer tokens"),
        ([GEN, 1, 1], "several answer tokens"),
        ([1, 10, 20], "no answer token"),  # the first token is not checked
    ],
)
def test_rejected_ids(ids: list[int], reason: str) -> None:
    assert parse_generated(ids, Ids()) == reason


@given(st.lists(st.integers(0, 12), max_size=20))
def test_the_filter_keeps_exactly_the_ids_with_one_answer_token(rest: list[int]) -> None:
    parsed = parse_generated([GEN, *rest], Ids())
    visible = rest[: rest.index(0)] if 0 in rest else rest
    if isinstance(parsed, PseudoExample):
        assert [*parsed.question, 1, *parsed.answer] == visible
    else:
        assert visible.count(1) != 1


def test_table_of_pseudo_examples(tokenizer: TaskTokenizer) -> None:
    woz, sst = tokenizer.gen["woz.en"], tokenizer.gen["sst"]
    examples = [PseudoExample(sst, (5, 6), (7,)), PseudoExample(woz, (), ())]
    table = generated_table(examples, ["sst", "woz.en"], tokenizer, stage=3)
    assert table.schema == TOKENS
    ans = tokenizer.ans
    assert table.to_pylist() == [
        {"ids": [5, 6, ans, 7], "prompt_length": 3, "gen": sst, "task": "sst", "sample_id": "replay-3-0"}
        | {"origin": "generated"},
        {"ids": [ans], "prompt_length": 1, "gen": woz, "task": "woz.en", "sample_id": "replay-3-1"}
        | {"origin": "generated"},
    ]
    assert generated_table([], [], tokenizer, 1).num_rows == 0


def test_if_tasks_share_a_token_an_example_keeps_the_task_it_was_generated_for() -> None:
    shared = TaskTokenizer.trained(["a b"] * 3, 260, ["woz.en", "sst"], 0, shared=True)
    example = PseudoExample(shared.gen["sst"], (5,), (7,))
    table = generated_table([example, example], ["sst", "woz.en"], shared, stage=1)
    assert table["task"].to_pylist() == ["sst", "woz.en"]
    assert len(set(table["gen"].to_pylist())) == 1


def test_an_example_of_no_task_is_an_error(tokenizer: TaskTokenizer) -> None:
    with pytest.raises(ModelError, match=rf"ids \[{tokenizer.ans}\]"):
        generated_table([PseudoExample(tokenizer.ans, (), ())], ["sst"], tokenizer, 1)


def test_a_spare_token_belongs_to_no_task_until_it_is_assigned(tokenizer: TaskTokenizer) -> None:
    example = PseudoExample(tokenizer.spares[0], (), ())
    with pytest.raises(ModelError, match="tokens that belong to no task"):
        generated_table([example], ["late"], tokenizer, 1)
    assert generated_table([example], ["late"], tokenizer.assign("late"), 1).num_rows == 1


def test_an_example_without_a_task_is_an_error_of_the_caller(tokenizer: TaskTokenizer) -> None:
    with pytest.raises(pa.ArrowInvalid):
        generated_table([PseudoExample(tokenizer.gen["sst"], (), ())], [], tokenizer, 1)


WORKED = {
    2536: (508, 254, 169, 127),
    6604: (1321, 660, 440, 330),
    6525: (1305, 652, 435, 326),
    6000: (1200, 600, 400, 300),
    6228: (1246, 623, 415, 311),
    6446: (1290, 645, 430, 322),
    8442: (1689, 844, 563, 422),
    7944: (1589, 794, 529, 397),
    115000: (23000, 11500, 7666, 5750),
}


@pytest.mark.parametrize(("num_new", "counts"), WORKED.items())
def test_worked_replay_counts(num_new: int, counts: tuple[int, ...]) -> None:
    assert tuple(num_replayed_per_task(0.2, num_new, previous) for previous in (1, 2, 3, 4)) == counts


@given(st.integers(1, 200_000), st.integers(1, 12))
def test_counts_equal_the_formula_of_the_reference(num_new: int, previous: int) -> None:
    total = math.ceil(0.2 * num_new)
    assert num_replayed_per_task(0.2, num_new, previous) == (total - total % previous) // previous


def test_counts_at_the_edges() -> None:
    assert num_replayed_per_task(0.2, 100, 0) == 0
    assert num_replayed_per_task(0.0, 100, 3) == 0
    assert num_replayed_per_task(1.0, 2, 3) == 0
    assert math.ceil(0.07 * 100) == 8  # the floating-point result
    assert num_replayed_per_task(0.07, 100, 1) == 7
    assert num_replayed_per_task(1e-05, 100_000, 1) == 1
