"""The ledger of tensor storages."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from ray_l4.planning.memory_trace import HEAP_LIMIT, HEAP_SLACK
from tests.planning.planning_fixtures import cpu_ledger

actions = st.lists(st.one_of(st.integers(1, 50), st.none()), max_size=30)
"""A size to allocate, in units, or None to free the oldest block."""


@settings(max_examples=20)
@given(actions, st.sampled_from([1, HEAP_LIMIT // 40]))
def test_it_says_what_a_plain_count_says(sizes: list[int | None], unit: int) -> None:
    """Peak, and the heap that never shrinks, over any order of allocating and freeing; nothing is really allocated."""
    ledger, blocks, live = cpu_ledger(), [], []
    peak = heap = resident = 0
    with FakeTensorMode(), ledger:
        for size in sizes:
            if size is not None:
                blocks.append(torch.empty(size * unit, dtype=torch.uint8).float())
                live.append(4 * size * unit)
                during = [*live, size * unit]  # the block before it was widened
            elif blocks:
                blocks.pop(0)
                live.pop(0)
                during = live
            else:
                continue
            small = [own for own in during if own < HEAP_LIMIT]
            if size is not None:
                heap = max(heap, sum(small))
                peak = max(peak, sum(during))
                resident = max(resident, sum(during) - sum(small) + round(HEAP_SLACK * heap))
    assert sum(ledger.peak.values()) == pytest.approx(peak, abs=100 * unit)
    assert ledger.live.total() == sum(live)
    assert ledger.resident == pytest.approx(resident, abs=150 * unit)


def test_views_are_not_counted_again_and_memory_is_freed_with_its_last_view() -> None:
    ledger = cpu_ledger()
    with FakeTensorMode(), ledger:
        whole = torch.empty(100, 10)
        part = whole[:50].t()
        assert ledger.live.total() == 4000
        del whole
        assert ledger.live.total() == 4000
        del part
        assert ledger.live.total() == 0
    assert sum(ledger.peak.values()) == 4000


def test_what_autograd_keeps_is_counted() -> None:
    ledger = cpu_ledger()
    with FakeTensorMode(), ledger:
        weight = torch.empty(1000, requires_grad=True)
        result = weight.exp().sin().sum()
        assert ledger.live.total() == 2 * 4000 + 4, "weight, its exponential for both backward steps, and the sum"
        result.backward()
        del result
        assert ledger.live.total() == 2 * 4000, "weight and its gradient"


def test_purposes() -> None:
    ledger = cpu_ledger()
    with FakeTensorMode(), ledger:
        ledger.begin("one")
        first = torch.empty(10)
        ledger.begin("two")
        second = torch.empty(20)
        assert ledger.live == {"one": 40, "two": 80}
        ledger.assign(first, "three")
        assert ledger.live["one"] == 0 and ledger.live["three"] == 40
        ledger.rename("two", "three")
        assert +ledger.live == {"three": 120}
        del first, second
        assert not +ledger.live


def test_only_its_own_device_is_counted() -> None:
    ledger = cpu_ledger()
    with FakeTensorMode(), ledger:
        elsewhere = torch.empty(10, device="cuda")
        assert ledger.live.total() == 0
        assert elsewhere.device.type == "cuda"


def test_whole_numbers_stay_real_and_all_else_has_no_data() -> None:
    ledger = cpu_ledger()
    with FakeTensorMode(allow_non_fake_inputs=True), ledger:
        ids = torch.arange(6)
        assert ids[ids % 2 == 1].tolist() == [1, 3, 5], "a shape that follows from data"
        weight = torch.empty(2**40)
        assert isinstance(weight, FakeTensor), "four TiB"
        rows = torch.empty(6, 3)[ids]
        assert isinstance(rows, FakeTensor) and rows.shape == (6, 3)


@pytest.mark.parametrize("answer", [0.0, 3.0])
def test_who_reads_a_value_is_given_the_answer(answer: float) -> None:
    ledger = cpu_ledger()
    ledger.answer = answer
    with FakeTensorMode(), ledger:
        assert torch.empty(()).item() == answer
        assert torch.empty(2).tolist() == [answer, answer]
        assert bool(torch.allclose(torch.empty(2), torch.empty(2))) is bool(answer)
    assert int(torch.ones(())) == 1, "afterwards all is as before"
