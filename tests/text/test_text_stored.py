"""Stored examples: what a reservoir can hold is enough for it, however many tasks come."""

from __future__ import annotations

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from ray_l4.text.stored import STORED, reservoir_of, stored_part
from ray_l4.text.tokens import TOKENS, concatenated, tokens_table


def table(item: str, count: int) -> pa.Table:
    names = [f"{item}-{row}" for row in range(count)]
    return tokens_table([[row] for row in range(count)], [1] * count, [9] * count, [item] * count, names, "real")


@given(
    sizes=st.lists(st.integers(0, 12), min_size=1, max_size=4),
    capacity=st.none() | st.integers(1, 20),
    seed=st.integers(0, 3),
)
def test_the_reservoir_of_parts_is_that_of_everything(sizes: list[int], capacity: int | None, seed: int) -> None:
    tables = {f"task {number}": table(f"task {number}", size) for number, size in enumerate(sizes)}
    whole = [stored_part(own, item, seed, None) for item, own in tables.items()]
    parts = [stored_part(own, item, seed, capacity) for item, own in tables.items()]
    found = reservoir_of(parts, capacity)
    assert found == reservoir_of(whole, capacity)
    assert found.schema == TOKENS and all(part.schema == STORED for part in parts)
    assert found.num_rows == min(sum(sizes), sum(sizes) if capacity is None else capacity)
    if capacity is None:
        assert found == concatenated(*tables.values())
    else:
        assert all(part.num_rows <= capacity for part in parts)


def test_the_keys_of_an_item_depend_on_its_name_and_the_seed() -> None:
    first, same, other, seeded = (
        stored_part(table("a", 30), item, seed, 10)["sample_id"].to_pylist()
        for item, seed in (("a", 0), ("a", 0), ("a (2)", 0), ("a", 1))
    )
    assert first == same and first != other and first != seeded
    assert first == sorted(first, key=lambda name: int(name.partition("-")[2])), "in the order of the item"
