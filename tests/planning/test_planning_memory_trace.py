"""The trace of tensor storages."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from ray_l4.planning.memory_trace import HEAP_LIMIT, HEAP_SLACK
from tests.planning.planning_fixtures import cpu_trace

actions = st.lists(st.one_of(st.integers(1, 50), st.none()), max_size=30)
"""Sizes to allocate, in units; None frees the oldest block."""


@settings(max_examples=20)
@given(actions, st.sampled_from([1, HEAP_LIMIT // 40]))
def test_it_agrees_with_a_plain_count(sizes: list[int | None], unit: int) -> None:
    """Peak and heap, which never shrinks, in any order of allocations and frees; nothing is really allocated."""
    trace, blocks, live = cpu_trace(), [], []
    peak = heap = resident = 0
    with FakeTensorMode(), trace:
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
    assert sum(trace.peak.values()) == pytest.approx(peak, abs=100 * unit)
    assert trace.live.total() == sum(live)
    assert trace.resident == pytest.approx(resident, abs=150 * unit)


def test_views_are_not_counted_again_and_memory_is_freed_with_its_last_view() -> None:
    trace = cpu_trace()
    with FakeTensorMode(), trace:
        whole = torch.empty(100, 10)
        part = whole[:50].t()
        assert trace.live.total() == 4000
        del whole
        assert trace.live.total() == 4000
        del part
        assert trace.live.total() == 0
    assert sum(trace.peak.values()) == 4000


def test_tensors_kept_by_autograd_are_counted() -> None:
    trace = cpu_trace()
    with FakeTensorMode(), trace:
        weight = torch.empty(1000, requires_grad=True)
        result = weight.exp().sin().sum()
        assert trace.live.total() == 2 * 4000 + 4, "weight, its exponential for both backward steps, and the sum"
        result.backward()
        del result
        assert trace.live.total() == 2 * 4000, "weight and its gradient"


def test_purposes() -> None:
    trace = cpu_trace()
    with FakeTensorMode(), trace:
        trace.begin("one")
        first = torch.empty(10)
        trace.begin("two")
        second = torch.empty(20)
        assert trace.live == {"one": 40, "two": 80}
        trace.assign(first, "three")
        assert trace.live["one"] == 0 and trace.live["three"] == 40
        trace.rename("two", "three")
        assert +trace.live == {"three": 120}
        del first, second
        assert not +trace.live


def test_other_devices_are_not_counted() -> None:
    trace = cpu_trace()
    with FakeTensorMode(), trace:
        elsewhere = torch.empty(10, device="cuda")
        assert trace.live.total() == 0
        assert elsewhere.device.type == "cuda"


def test_integers_keep_their_values_and_other_tensors_have_none() -> None:
    trace = cpu_trace()
    with FakeTensorMode(allow_non_fake_inputs=True), trace:
        ids = torch.arange(6)
        assert ids[ids % 2 == 1].tolist() == [1, 3, 5], "a shape that follows from data"
        weight = torch.empty(2**40)
        assert isinstance(weight, FakeTensor), "four TiB"
        rows = torch.empty(6, 3)[ids]
        assert isinstance(rows, FakeTensor) and rows.shape == (6, 3)


def test_a_value_that_is_read_is_one_however_often() -> None:
    with FakeTensorMode(), cpu_trace():
        for _ in range(3):
            assert torch.empty(()).item() == 1.0
            assert torch.empty(2).tolist() == [1.0, 1.0]
            assert int(torch.empty(())) == 1 and bool((torch.empty(2) > 5).all())
            assert torch.allclose(torch.empty(2), torch.empty(2)) and torch.equal(torch.empty(2), torch.empty(2))
        assert type(torch.empty(()).int().item()) is int and type((torch.empty(()) > 0).item()) is bool
    assert torch.zeros(()).item() == 0, "afterwards tensors have values again"
