"""Rows that join and leave a batch between two tokens have the tokens that they have alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedConfig, PreTrainedModel

from ray_l4.learner.batched_engine import BatchedEngine
from ray_l4.learner.cache_memory import bytes_per_token
from ray_l4.learner.engine import Decoding, Prompt
from ray_l4.learner.key_values import KeyValues
from ray_l4.learner.rolling_batch import RollingBatch
from ray_l4.learner.sampling import Chooser
from tests.learner import architectures as small
from tests.learner.test_learner_engine import END, ONE_LENGTH, PADDED, requests, sharp

MANY = (1, 5, 2, 13, 3, 8, 13, 1, 12, 1)


def rolled(
    model: PreTrainedModel, prompts: Sequence[Prompt], decoding: Decoding, steps_between: int, at_once: int = 2
) -> list[list[int]]:
    """Continue prompts of which a few join every so many steps, as there is room for them."""
    batch, waiting, rows = RollingBatch(model, decoding), list(prompts), []
    while waiting or len(batch):
        count = batch.room_for(waiting[:at_once])
        rows += batch.join(waiting[:count])
        waiting = waiting[count:]
        for _ in range(steps_between):
            batch.step()
    assert batch.step() == []
    return [row.new for row in rows]


@pytest.fixture(scope="module")
def gpt2() -> PreTrainedModel:
    model = sharp(small.GPT2)
    with torch.no_grad():
        model.transformer.wte.weight[END] *= 1.5
    return model


@pytest.mark.parametrize("decoding", [Decoding(end=END), Decoding(5, 2.0, end=END)], ids=["greedy", "sampled"])
@pytest.mark.parametrize("name", [*PADDED, *ONE_LENGTH])
def test_rows_that_join_later_have_the_tokens_of_the_engine(name: str, decoding: Decoding) -> None:
    model = sharp((PADDED | ONE_LENGTH)[name])
    asked = requests(MANY, 16)
    expected = BatchedEngine().extend(model, asked, decoding)
    assert len({tuple(row) for row in expected}) > len(MANY) - 4, "a model that says the same to all tests nothing"
    assert rolled(model, asked, decoding, steps_between=3) == expected


@given(data=st.data(), top_k=st.sampled_from([1, 4]), top_p=st.sampled_from([0.6, 1.0]))
def test_tokens_do_not_depend_on_who_comes_and_goes(
    gpt2: PreTrainedModel, data: st.DataObject, top_k: int, top_p: float
) -> None:
    decoding = Decoding(top_k, 2.0, end=END, top_p=top_p)
    drawn = data.draw(st.lists(st.tuples(st.integers(1, 14), st.integers(0, 19)), max_size=10))
    asked = requests([length for length, _ in drawn], [limit for _, limit in drawn])
    alone = [BatchedEngine().extend(gpt2, [prompt], decoding)[0] for prompt in asked]
    between, at_once = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 4))
    assert rolled(gpt2, asked, decoding, between, at_once) == alone


def test_a_row_that_is_told_to_leave_does_not_disturb_the_others(gpt2: PreTrainedModel) -> None:
    asked, decoding = requests([4, 9, 2], 12), Decoding(banned=[END], end=END)
    expected = BatchedEngine().extend(gpt2, asked, decoding)
    batch = RollingBatch(gpt2, decoding)
    first, second, third = batch.join(asked)
    batch.step()
    second.done = True
    assert len(batch) == 2
    while len(batch):
        assert all(row is not second for row in batch.step())
    assert [first.new, second.new, third.new] == [expected[0], expected[1][:1], expected[2]]


def test_rows_join_only_where_all_their_tokens_fit(gpt2: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rows of 10 and 10 more tokens fit into 45 columns; when one has left, there is room again."""
    columns = 45
    batch = RollingBatch(gpt2, Decoding(banned=[END], end=END), columns * bytes_per_token(gpt2.config, gpt2.dtype))
    widest = 0
    grow = KeyValues.grow

    def watched(cache: KeyValues, capacity: int) -> None:
        nonlocal widest
        grow(cache, capacity)
        widest = max(widest, cache.rows * capacity)

    monkeypatch.setattr(KeyValues, "grow", watched)
    asked = requests([10] * 4, 10)
    assert batch.room_for(asked) == 2
    rows = batch.join(asked[:2])
    assert batch.room_for(asked[2:]) == 0
    rows[0].done = True
    assert batch.room_for(asked[2:]) == 1
    while len(batch):
        batch.step()
    assert batch.room_for(requests([30], 30)) == 1, "a single row always has room"
    assert widest <= columns


@pytest.mark.parametrize("config", [small.GPT2, small.LLAMA], ids=["gpt2", "llama"])
def test_no_row_goes_beyond_the_positions(config: PreTrainedConfig) -> None:
    asked = requests([1, 20, 31, 32, 3], 10**9)
    found = rolled(sharp(config), asked, Decoding(banned=[END], end=END), 2, 1)
    assert [len(row) for row in found] == [32, 13, 2, 1, 30]


def test_a_prompt_without_tokens_is_refused(gpt2: PreTrainedModel) -> None:
    with pytest.raises(ValueError, match="no tokens"):
        RollingBatch(gpt2, Decoding(end=END)).join([Prompt([], 3)])


@pytest.mark.parametrize(("top_p", "kept"), [(0.5, {3}), (0.75, {3, 1}), (0.99, {3, 1, 0}), (1.0, {3, 1, 0, 2})])
def test_a_nucleus_is_the_most_likely_tokens_that_reach_its_share(top_p: float, kept: set[int]) -> None:
    logits_BV = torch.log(torch.tensor([[0.15, 0.25, 0.005, 0.595]])).expand(400, -1)
    chooser = Chooser(Decoding(4, top_p=top_p), torch.device("cpu"))
    noise_BK = torch.from_numpy(np.random.default_rng(0).gumbel(size=(400, 4))).float() * 3
    assert set(chooser.choose(logits_BV, noise_BK).tolist()) == kept
