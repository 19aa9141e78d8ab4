"""The comparison with Transformers' ``generate``: the same tokens on both sides, and figures that add up."""

from __future__ import annotations

from typing import Any

import pytest

from ray_l4.bench.generate import GenerateCase, GenerateSide, measure

KEYS = [
    *("bench", "model", "work", "batch", "examples", "threads", "tokens_per_cpu_second"),
    *("textbook_tokens_per_cpu_second", "speedup_over_textbook", "wall_speedup_over_textbook", "greedy_outputs_equal"),
]


def case(work: Any, examples: int = 6) -> GenerateCase:
    return GenerateCase("small", work, examples, chunk=4, threads=1)


@pytest.mark.parametrize("work", ["replay", "answers"])
def test_both_sides_continue_the_same_prompts_alike(work: Any) -> None:
    here, textbook = (GenerateSide(case(work), textbook=own) for own in (False, True))
    found = here.greedy()
    assert found == textbook.greedy()
    assert len(found) == 4 and any(found), "a chunk, and something in it"


def test_tokens_are_counted_with_the_one_that_ends_an_example() -> None:
    side = GenerateSide(case("answers"), textbook=False)
    made = side.generate(0)
    assert 6 <= made.tokens <= 6 * 24
    assert made.cpu_seconds > 0 and made.wall_seconds > 0
    assert side.generate(0).tokens == made.tokens, "the same prompts"


@pytest.mark.processes
def test_a_measurement_has_all_its_figures() -> None:
    row = measure(case("replay", examples=4), 1, lambda line: None)
    assert list(row)[: len(KEYS)] == KEYS
    assert row["greedy_outputs_equal"] is True
    assert row["tokens_per_cpu_second"] > 0 < row["textbook_tokens_per_cpu_second"]
    assert row["tokens_per_example"] <= 200
