"""Weights of labels compared with sums over Python floats: which groups count, and joint or separate means."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from losses_twins import random_logits, some_examples

from ray_l4.losses.label_weights import label_weights
from ray_l4.losses.nll import nll

weights = st.lists(st.sampled_from([0.0, 1.0, 5.0]), max_size=8)


def twin(losses: list[float], current: list[float], replayed: list[float], use: bool, means: str) -> float:
    """Compute the loss from its definition; the mean of an empty group is 0."""
    first = list(zip(losses[: len(current)], current, strict=True)) if use else []
    second = list(zip(losses[len(current) :], replayed, strict=True))
    groups = [first + second] if means == "pooled" else [first, second]
    return sum(sum(loss * w for loss, w in group) / (sum(w for _, w in group) or 1.0) for group in groups)


@some_examples
@given(current=weights, replayed=weights, use=st.booleans(), means=st.sampled_from(["pooled", "separate"]))
def test_weighted_sum_over_divisor_is_the_loss(
    current: list[float], replayed: list[float], use: bool, means: str
) -> None:
    weights_N = torch.tensor(current + replayed)
    before = weights_N.clone()
    new_N, divisor = label_weights(weights_N, len(current), current=use, means=means)  # type: ignore[arg-type]
    assert torch.equal(weights_N, before), "the weights of the batch do not change"
    logits, targets = random_logits(len(weights_N), 5, 0), torch.arange(len(weights_N)) % 5
    losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none").tolist()
    loss = nll(logits, targets, new_N, divisor)
    assert loss.item() == pytest.approx(twin(losses, current, replayed, use, means), rel=1e-5, abs=1e-6)


@some_examples
@given(current=weights, replayed=weights, use=st.booleans(), means=st.sampled_from(["pooled", "separate"]))
def test_labels_without_weight_have_none_afterwards(
    current: list[float], replayed: list[float], use: bool, means: str
) -> None:
    new_N, divisor = label_weights(
        torch.tensor(current + replayed),
        len(current),
        current=use,
        means=means,  # type: ignore[arg-type]
    )
    bears = [w > 0 and (use or i >= len(current)) for i, w in enumerate(current + replayed)]
    assert [w > 0 for w in new_N.tolist()] == bears
    assert new_N.isfinite().all()
    assert divisor >= 0


def test_pooled_weights_are_those_of_the_batch_bit_for_bit() -> None:
    """``means: pooled`` is LAMOL's loss to the last bit."""
    weights_N = torch.tensor([1.0, 5.0, 1.0, 1.0])
    new_N, divisor = label_weights(weights_N, 2, current=True, means="pooled")
    assert torch.equal(new_N, weights_N)
    assert divisor == 8.0


def test_one_replayed_example_weighs_as_much_as_all_current_ones_with_separate_means() -> None:
    """The two means are added with weight 1 each (REFERENCE.md#word-kd-loss)."""
    new_N, divisor = label_weights(torch.tensor([1.0, 1.0, 1.0, 5.0]), 3, current=True, means="separate")
    assert new_N.tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 1.0])
    assert divisor == 1.0


def test_without_current_labels_both_means_are_the_same() -> None:
    weights_N = torch.tensor([1.0, 5.0, 1.0, 3.0])
    pooled, separate = (label_weights(weights_N, 2, current=False, means=means) for means in ("pooled", "separate"))  # type: ignore[arg-type]
    torch.testing.assert_close(pooled[0] / pooled[1], separate[0] / separate[1])
