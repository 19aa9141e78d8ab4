"""Named random streams: stable, independent of the order of calls, and distinct."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ray_l4.seeds import derive

# Without control characters: one of them is the separator, which no name of a stream contains.
words = st.text(st.characters(exclude_categories=("C",)), max_size=12)
names = st.lists(st.one_of(words, st.integers()), max_size=4)
seeds = st.integers(-(2**70), 2**70)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((0,), 4761921975702974394),
        ((0, "init"), 5071073368038746931),
        ((0, "dropout", 1, 2, 3), 5493415263976369147),
        ((42, "sample", "woz.en", "train"), 8078330829449506654),
    ],
)
def test_seeds_never_change(arguments: tuple[int, ...], expected: int) -> None:
    """With other seeds, no older run could be reproduced."""
    assert derive(*arguments) == expected


def test_seeds_do_not_depend_on_the_process() -> None:
    """Python's hash of strings does, so it must not be used."""
    program = "from ray_l4.seeds import derive; print(derive(7, 'replay', 1, 'x'))"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert outputs == {f"{derive(7, 'replay', 1, 'x')}\n"}


@given(seeds, names)
def test_every_generator_accepts_a_seed(seed: int, stream: list[str | int]) -> None:
    value = derive(seed, *stream)
    assert 0 <= value < 2**63
    torch.manual_seed(value)  # raises if the seed is too large


@given(seeds, names, names)
def test_different_names_give_different_streams(seed: int, one: list[str | int], other: list[str | int]) -> None:
    assert (derive(seed, *one) == derive(seed, *other)) == (one == other)


@given(seeds, seeds, names)
def test_different_runs_differ_in_every_stream(seed: int, other: int, stream: list[str | int]) -> None:
    assert (derive(seed, *stream) == derive(other, *stream)) == (seed == other)


@given(seeds, st.integers())
def test_a_number_differs_from_its_text(seed: int, number: int) -> None:
    assert derive(seed, number) != derive(seed, str(number))


@given(words, words)
def test_the_boundary_between_names_counts(one: str, other: str) -> None:
    if other:
        assert derive(0, one, other) != derive(0, one + other)
        assert derive(0, one, other) != derive(0, one + other, "")


@given(st.permutations([("init",), ("init", 1), ("dropout", 0, 1), ("replay", 2, 5)]))
def test_the_order_of_calls_does_not_matter(order: list[tuple[str | int, ...]]) -> None:
    found = {stream: derive(3, *stream) for stream in order}
    assert found == {stream: derive(3, *stream) for stream in sorted(order, key=str)}


def test_the_order_of_names_does_matter() -> None:
    assert derive(0, "stage", 1, 2) != derive(0, "stage", 2, 1)


def test_bits_are_spread_evenly() -> None:
    """Seeds of consecutive names share no pattern: each bit is set in about half of them."""
    values = [derive(0, "step", step) for step in range(2000)]
    for bit in range(63):
        share = sum(value >> bit & 1 for value in values) / len(values)
        assert 0.44 < share < 0.56, f"bit {bit} is set in {share:.0%}; 5 standard deviations are 5.6 %"
