"""Models that decode together: each token is chosen from the mean of their probabilities, however rows are batched."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import GPT2Config, PreTrainedConfig, PreTrainedModel

from ray_l4.learner.batched_engine import BatchedEngine
from ray_l4.learner.cache_memory import bytes_per_token
from ray_l4.learner.decoding_state import DecodingState
from ray_l4.learner.engine import Decoding, Prompt
from ray_l4.learner.mean_state import MeanState, begin_together, mean_log_probabilities
from ray_l4.learner.model_calls import ModelCalls
from tests.learner import architectures as small
from tests.learner.test_learner_engine import END, LENGTHS, ONE_LENGTH, prompts_of, requests

LARGER = GPT2Config(**{**small.GPT2.to_dict(), "vocab_size": small.VOCABULARY + 20, "n_embd": 8})
GROUPS: dict[str, Sequence[PreTrainedConfig]] = {
    "two of one shape": [small.GPT2, small.GPT2],
    "three of two shapes": [small.LLAMA, small.GPT2, small.LLAMA],
    "four": [small.GPT2, small.LLAMA, small.GPT2, small.GEMMA2],
    "one with more rows than tokens": [LARGER, small.GPT2],
    "one that needs rows of one length": [small.GPT2, ONE_LENGTH["mamba"]],
}


def bfloat16(enabled: bool) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=enabled)


def models_of(configs: Sequence[PreTrainedConfig], seed: int = 0) -> list[PreTrainedModel]:
    """Models with other weights each, of which none decides alone."""
    found = [small.untrained(config, seed + number) for number, config in enumerate(configs)]
    with torch.no_grad():
        for model in found:
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(4)
    return found


def together(
    models: Sequence[PreTrainedModel],
    asked: Sequence[Prompt],
    decoding: Decoding,
    cache_bytes: int | None = None,
    half: Sequence[bool] | None = None,
) -> list[list[int]]:
    """Continue prompts with the engine. ``half``: whether each model computes in bfloat16."""
    contexts = [partial(bfloat16, own) for own in half or [False] * len(models)]
    others = [ModelCalls.of(model, context) for model, context in zip(models[1:], contexts[1:], strict=True)]
    with contexts[0]():
        return BatchedEngine(cache_bytes, others).extend(models[0], asked, decoding)


def mean_probabilities(models: Sequence[PreTrainedModel], ids: Sequence[int], half: Sequence[bool]) -> Tensor:
    """Run every model on a whole sequence, and average the probabilities of what comes next."""
    mean_V = torch.zeros(min(model.config.vocab_size for model in models), dtype=torch.float64)
    for model, own in zip(models, half, strict=True):
        with bfloat16(own):
            logits_V = model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0, -1]
        mean_V += logits_V.double().softmax(-1)[: len(mean_V)] / len(models)
    return mean_V


@torch.no_grad()
def plain(
    models: Sequence[PreTrainedModel], prompt: Prompt, decoding: Decoding, half: Sequence[bool] | None = None
) -> list[int]:
    """Continue a prompt token by token, without a cache."""
    draw, ids = np.random.default_rng(prompt.seed), list(prompt.ids)
    while len(ids) < len(prompt.ids) + prompt.limit:
        mean_V = mean_probabilities(models, ids, half or [False] * len(models))
        mean_V[list(decoding.banned)] = 0
        best_K, ids_K = torch.topk(mean_V, decoding.top_k)
        noise_K = draw.gumbel(size=decoding.top_k) if decoding.top_k > 1 else np.zeros(1)
        token = int(ids_K[(best_K.log() / decoding.temperature + torch.from_numpy(noise_K)).argmax()])
        if token == END:
            break
        ids.append(token)
    return ids[len(prompt.ids) :]


@pytest.mark.parametrize("top_k", [1, 5])
@pytest.mark.parametrize("name", GROUPS)
def test_tokens_are_those_of_a_plain_loop(name: str, top_k: int) -> None:
    models, asked = models_of(GROUPS[name]), requests(LENGTHS, 12)
    decoding = Decoding(top_k, banned=(7, 9), end=END)
    expected = [plain(models, prompt, decoding) for prompt in asked]
    assert together(models, asked, decoding) == expected
    assert together(models, asked, decoding, cache_bytes=6000) == expected, "in several batches, with rows that wait"
    alone = [BatchedEngine().extend(model, asked, decoding) for model in models]
    assert all(own != expected for own in alone), "a mean that is one of its models tests nothing"


@pytest.mark.parametrize("half", [(True, True), (False, True), (True, False)])
def test_each_model_computes_in_its_own_precision(half: Sequence[bool]) -> None:
    models, asked, decoding = models_of([small.GPT2, small.LLAMA]), requests(LENGTHS, 8), Decoding(end=END)
    assert together(models, asked, decoding, half=half) == [plain(models, prompt, decoding, half) for prompt in asked]
    for model, own, other in zip(models, half, half[::-1], strict=True):
        ids_1T = torch.tensor([prompts_of([9])[0]])
        calls = ModelCalls.of(model, partial(bfloat16, own))
        with torch.no_grad(), bfloat16(other):
            assert calls.last_logits(ids_1T, None, torch.arange(9)[None], None).dtype == (
                torch.bfloat16 if own else torch.float32
            )


@settings(max_examples=25)
@given(data=st.data(), top_k=st.sampled_from([1, 4]), cache_bytes=st.sampled_from([None, 1, 6000, 24_000]))
def test_continuations_depend_neither_on_the_split_nor_on_the_order(
    data: st.DataObject, top_k: int, cache_bytes: int | None
) -> None:
    models, decoding = models_of([small.GPT2, small.GPT2]), Decoding(top_k, end=END)
    sizes = st.tuples(st.integers(1, 14), st.integers(0, 9))
    drawn = data.draw(st.lists(sizes, max_size=6))
    asked = requests([length for length, _ in drawn], [limit for _, limit in drawn])
    alone = [together(models, [prompt], decoding)[0] for prompt in asked]
    order = data.draw(st.permutations(range(len(asked))))
    assert together(models, [asked[index] for index in order], decoding, cache_bytes) == [alone[i] for i in order]


@pytest.mark.parametrize("top_k", [1, 4])
@pytest.mark.parametrize("count", [2, 3, 4])
def test_equal_models_say_what_one_of_them_says(count: int, top_k: int) -> None:
    (model,) = models_of([small.LLAMA])
    asked, decoding = requests(LENGTHS), Decoding(top_k, end=END)
    assert together([model] * count, asked, decoding) == BatchedEngine().extend(model, asked, decoding)


def test_a_single_model_has_the_state_that_it_always_had() -> None:
    (model,) = models_of([small.GPT2])
    assert not isinstance(begin_together([ModelCalls.of(model)], [[3, 4]], 4), MeanState)


def test_the_smallest_number_of_positions_counts() -> None:
    short = GPT2Config(**{**small.GPT2.to_dict(), "n_positions": 12})
    models, asked = models_of([small.GPT2, short]), [Prompt(prompts_of([10])[0], 16)]
    assert [len(row) for row in together(models, asked, Decoding())] == [3], "the last one is not given to a model"


def test_the_memory_of_a_batch_is_that_of_all_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """A budget for the rows of one model has room for half as many of two of its kind."""
    models, asked = models_of([small.GPT2, small.GPT2]), requests([4] * 8, 4)
    rows: list[int] = []

    def counted(calls: Sequence[ModelCalls], ids: Sequence[Sequence[int]], room: int) -> DecodingState:
        rows.append(len(ids))
        return begin_together(calls, ids, room)

    monkeypatch.setattr("ray_l4.learner.batched_engine.begin_together", counted)
    budget = 8 * 20 * bytes_per_token(small.GPT2, torch.float32)
    together(models[:1], asked, Decoding(), cache_bytes=budget)
    together(models, asked, Decoding(), cache_bytes=budget)
    assert rows == [8, 4, 4]


@given(
    st.lists(st.lists(st.floats(-60, 60), min_size=5, max_size=5), min_size=1, max_size=4),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_the_logarithm_of_the_mean_of_the_probabilities(logits: list[list[float]], dtype: torch.dtype) -> None:
    given_BV = [torch.tensor([row], dtype=dtype) for row in logits]
    expected_V = torch.stack([row_BV.double().softmax(-1)[0] for row_BV in given_BV]).mean(0)
    found_BV = mean_log_probabilities(given_BV)
    assert found_BV.dtype == torch.float32
    assert found_BV.exp()[0].tolist() == pytest.approx(expected_V.tolist(), abs=1e-5)
    assert math.isclose(float(found_BV.exp().sum()), 1.0, abs_tol=1e-5)


def test_only_tokens_that_all_models_know_are_there() -> None:
    few, many = torch.zeros(1, 2), torch.zeros(1, 4)
    assert mean_log_probabilities([few, many]).exp()[0].tolist() == pytest.approx([0.375, 0.375])
