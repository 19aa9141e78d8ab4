"""The decoding engine, against Transformers' own ``generate`` and a plain loop, for all architectures and any split."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    BloomConfig,
    FalconH1Config,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    MambaConfig,
    MistralConfig,
    OPTConfig,
    PreTrainedConfig,
    PreTrainedModel,
    modeling_utils,
)

from ray_l4.learner import batched_engine, decoding_state
from ray_l4.learner.batched_engine import BatchedEngine
from ray_l4.learner.cache_memory import bytes_per_token, cache_budget
from ray_l4.learner.engine import Decoding, Prompt
from ray_l4.learner.key_values import KeyValues
from ray_l4.learner.model_calls import ModelCalls
from ray_l4.learner.packing import use_packed_attention
from tests.learner import architectures as small

END = 2
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": END}
TINY = {"vocab_size": small.VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, **IDS}
WINDOWS = small.GEMMA2.to_dict() | {"sliding_window": 4}
FALCON = {"num_key_value_heads": 1, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8}
PADDED: dict[str, PreTrainedConfig] = {
    "gpt2": small.GPT2,
    "llama": small.LLAMA,
    "neox": small.NEOX,
    "granite": small.GRANITE,
    "cohere": small.COHERE,
    "gemma2": small.GEMMA2,
    "gemma2, short windows": type(small.GEMMA2)(**WINDOWS),
    "mistral, short windows": MistralConfig(**small.SIZES, num_key_value_heads=1, sliding_window=5),
    "opt": OPTConfig(**TINY, ffn_dim=32, word_embed_proj_dim=16, max_position_embeddings=32),
}
ONE_LENGTH: dict[str, PreTrainedConfig] = {
    "bloom": BloomConfig(**TINY),
    "mamba": MambaConfig(**TINY, state_size=4),
    "falcon-h1": FalconH1Config(**small.SIZES, **FALCON, mamba_n_groups=1),
}
LENGTHS = (1, 5, 2, 13, 3, 8, 13, 1, 12)


def sharp(config: PreTrainedConfig) -> PreTrainedModel:
    """Build a model whose predictions depend on the prompt, without two that are nearly equal."""
    model = small.untrained(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6)
    return model


@pytest.fixture(scope="module")
def gpt2() -> PreTrainedModel:
    """A model that sometimes ends a continuation."""
    model = sharp(small.GPT2)
    with torch.no_grad():
        model.transformer.wte.weight[END] *= 1.5
    return model


def prompts_of(lengths: Sequence[int], seed: int = 0) -> list[list[int]]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randint(3, small.VOCABULARY, (length,), generator=draw).tolist() for length in lengths]


def requests(lengths: Sequence[int], limits: Sequence[int] | int = 16) -> list[Prompt]:
    limits = [limits] * len(lengths) if isinstance(limits, int) else limits
    prompts = zip(prompts_of(lengths), limits, strict=True)
    return [Prompt(ids, limit, 100 + index) for index, (ids, limit) in enumerate(prompts)]


def generated(model: PreTrainedModel, asked: Sequence[Prompt], banned: Sequence[int] = ()) -> list[list[int]]:
    """Continue the prompts one by one with Transformers' own loop, greedily."""
    found = []
    for prompt in asked:
        model.generation_config = GenerationConfig(
            max_new_tokens=prompt.limit,
            do_sample=False,
            eos_token_id=END,
            pad_token_id=0,
            suppress_tokens=list(banned) or None,
        )
        ids_1T = torch.tensor([prompt.ids])
        new = model.generate(input_ids=ids_1T, attention_mask=torch.ones_like(ids_1T))[0, len(prompt.ids) :].tolist()
        found.append(new[: new.index(END)] if END in new else new)
    return found


@torch.no_grad()
def sampled(model: PreTrainedModel, prompt: Prompt, decoding: Decoding) -> list[int]:
    """Sample a continuation token by token, without a cache."""
    draw, ids = np.random.default_rng(prompt.seed), list(prompt.ids)
    while len(ids) < len(prompt.ids) + prompt.limit:
        logits_V = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].float()
        logits_V[list(decoding.banned)] = -torch.inf
        best_K, ids_K = torch.topk(logits_V / decoding.temperature, decoding.top_k)
        token = int(ids_K[(best_K + torch.from_numpy(draw.gumbel(size=decoding.top_k)).float()).argmax()])
        if token == END:
            break
        ids.append(token)
    return ids[len(prompt.ids) :]


@pytest.mark.parametrize("banned", [(), (7, 9, 30)], ids=["all tokens", "some banned"])
@pytest.mark.parametrize("name", [*PADDED, *ONE_LENGTH])
def test_greedy_continuations_are_those_of_generate(name: str, banned: Sequence[int]) -> None:
    model = sharp((PADDED | ONE_LENGTH)[name])
    assert ModelCalls.of(model).padded == (name in PADDED)
    asked, decoding = requests(LENGTHS), Decoding(banned=banned, end=END)
    expected = generated(model, asked, banned)
    assert len({tuple(row) for row in expected}) > len(LENGTHS) - 3, "a model that says the same to all tests nothing"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert BatchedEngine().extend(model, asked, decoding) == expected
        assert BatchedEngine(cache_bytes=3000).extend(model, asked, decoding) == expected


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2, short windows", "mamba"])
def test_samples_are_those_of_a_plain_loop(name: str) -> None:
    model = sharp((PADDED | ONE_LENGTH)[name])
    asked, decoding = requests(LENGTHS, 18), Decoding(5, 3.0, banned=(7, 9), end=END)
    expected = [sampled(model, prompt, decoding) for prompt in asked]
    assert BatchedEngine().extend(model, asked, decoding) == expected
    assert any(len(row) > 16 for row in expected), "noise is drawn for 16 tokens at once"
    assert any(len(row) < 16 for row in expected)


def test_a_model_with_packed_attention_decodes_as_before(gpt2: PreTrainedModel) -> None:
    asked, decoding = requests(LENGTHS), Decoding(end=END)
    packed = sharp(small.LLAMA)
    expected = generated(packed, asked)
    assert use_packed_attention(packed)
    assert BatchedEngine().extend(packed, asked, decoding) == expected


class Wrapping(GPT2LMHeadModel):
    """Code of its own that passes arguments on."""

    def forward(self, *given: Any, **named: Any) -> Any:
        return super().forward(*given, **named)


class Cacheless(GPT2LMHeadModel):
    """Code of its own without a cache."""

    def forward(
        self, input_ids: Any, attention_mask: Any = None, use_cache: bool = False, return_dict: bool = True
    ) -> Any:
        assert not use_cache
        return super().forward(input_ids=input_ids, use_cache=False)


@pytest.mark.parametrize("kind", [Wrapping, Cacheless])
def test_a_model_with_code_of_its_own_is_given_what_it_takes(
    gpt2: PreTrainedModel, kind: type[GPT2LMHeadModel]
) -> None:
    own = kind(small.GPT2).eval()
    own.load_state_dict(gpt2.state_dict())
    assert ModelCalls.of(own).padded == (kind is Wrapping)
    asked = requests(LENGTHS)
    for decoding in (Decoding(end=END), Decoding(5, 2.0, end=END)):
        assert BatchedEngine().extend(own, asked, decoding) == BatchedEngine().extend(gpt2, asked, decoding)


@given(data=st.data(), top_k=st.sampled_from([1, 4]), cache_bytes=st.sampled_from([None, 1, 3000, 12_000, 30_000]))
def test_continuations_depend_neither_on_the_split_nor_on_the_order(
    gpt2: PreTrainedModel, data: st.DataObject, top_k: int, cache_bytes: int | None
) -> None:
    decoding = Decoding(top_k, 2.0, end=END)
    sizes = st.tuples(st.integers(1, 14), st.integers(0, 19))
    drawn = data.draw(st.lists(sizes, max_size=12))
    asked = requests([length for length, _ in drawn], [limit for _, limit in drawn])
    alone = [BatchedEngine().extend(gpt2, [prompt], decoding)[0] for prompt in asked]
    assert all(len(row) <= prompt.limit for row, prompt in zip(alone, asked, strict=True))
    order = data.draw(st.permutations(range(len(asked))))
    cut = data.draw(st.integers(0, len(asked)))
    engine = BatchedEngine(cache_bytes)
    for part in (order[:cut], order[cut:]):
        assert engine.extend(gpt2, [asked[index] for index in part], decoding) == [alone[index] for index in part]


@pytest.mark.parametrize("top_k", [1, 4])
def test_looking_at_the_tokens_less_often_changes_nothing(
    gpt2: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, top_k: int
) -> None:
    """On a GPU several steps are made between two looks, so rows that are done go on for a few tokens."""
    asked, decoding = (
        requests([*LENGTHS, 30, 32], [16, 3, 16, 0, 12, 1, 16, 31, 9, 16, 5]),
        Decoding(top_k, 2.0, end=END),
    )
    expected = BatchedEngine().extend(gpt2, asked, decoding)
    before = batched_engine._Batches.__init__

    def rarely(batches: Any, *given: Any) -> None:
        before(batches, *given)
        batches._steps = 8

    monkeypatch.setattr(batched_engine._Batches, "__init__", rarely)
    assert BatchedEngine().extend(gpt2, asked, decoding) == expected


@pytest.mark.parametrize("config", [small.GPT2, small.LLAMA], ids=["gpt2", "llama"])
def test_no_row_goes_beyond_the_positions(config: PreTrainedConfig) -> None:
    """The model has 32. The last token of a continuation needs none."""
    model = sharp(config)
    asked = requests([1, 20, 31, 32, 3], 10**9)
    new = BatchedEngine().extend(model, asked, Decoding(banned=[END], end=END))
    assert [len(row) for row in new] == [32, 13, 2, 1, 30]


@pytest.mark.parametrize("asked", [[], [Prompt([5], 0)]])
def test_nothing_to_do_runs_nothing(gpt2: PreTrainedModel, asked: list[Prompt]) -> None:
    assert BatchedEngine().extend(gpt2, asked, Decoding(end=END)) == [[] for _ in asked]


def test_a_prompt_without_tokens_is_refused(gpt2: PreTrainedModel) -> None:
    with pytest.raises(ValueError, match="prompt 1 has no tokens"):
        BatchedEngine().extend(gpt2, [Prompt([5], 3), Prompt([], 3)], Decoding(end=END))


def test_padding_tokens_in_prompts_are_tokens_like_others_and_cause_no_warning(
    gpt2: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = GPT2LMHeadModel(GPT2Config(**small.GPT2.to_dict() | {"pad_token_id": 7})).eval()
    own.load_state_dict(gpt2.state_dict())
    monkeypatch.setattr(modeling_utils.logger, "warning_once", pytest.fail)
    for prompts in ([[7], [8], [7]], [[7], [8, 7, 7], [7, 9]]):
        asked = [Prompt(ids, 9) for ids in prompts]
        engine, decoding = BatchedEngine(), Decoding(end=END)
        assert engine.extend(own, asked, decoding) == engine.extend(gpt2, asked, decoding)


# --- how the work is done


class Rows:
    """Records the shapes of what a model is given."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self.masks: list[torch.Tensor | None] = []
        self._hook = model.register_forward_pre_hook(self._record, with_kwargs=True)

    def _record(self, model: object, given: object, named: dict[str, Any]) -> None:
        self.shapes.append(tuple(named["input_ids"].shape))
        self.masks.append(named.get("attention_mask"))

    def __enter__(self) -> Rows:
        return self

    def __exit__(self, *error: object) -> None:
        self._hook.remove()


def test_the_output_layer_reads_contiguous_rows(gpt2: PreTrainedModel) -> None:
    """torch multiplies each row that is not by a copy of the output weights, which takes gigabytes and seconds."""
    seen = []
    hook = gpt2.lm_head.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0]))
    try:
        BatchedEngine().extend(gpt2, requests([7, 6, 3], 4), Decoding(end=END))
    finally:
        hook.remove()
    assert len(seen) > 1
    assert all(hidden_B1D.is_contiguous() for hidden_B1D in seen)
    assert not gpt2.lm_head._forward_pre_hooks


def test_rows_that_are_done_leave_the_batch(gpt2: PreTrainedModel) -> None:
    limits = [1, 2, 3, 4, 5, 6, 7, 8]
    with Rows(gpt2) as given:
        BatchedEngine().extend(gpt2, requests([1] * 8, limits), Decoding(banned=[END], end=END))
    assert given.shapes == [(rows, 1) for rows in range(8, 0, -1)]
    assert given.masks == [None] * 8, "rows of one length need no mask"


def test_columns_of_padding_alone_leave_the_batch(gpt2: PreTrainedModel) -> None:
    with Rows(gpt2) as given:
        BatchedEngine().extend(gpt2, requests([10, 2, 4], [3, 6, 6]), Decoding(banned=[END], end=END))
    steps = [
        mask.shape for (_, time), mask in zip(given.shapes, given.masks, strict=True) if time == 1 and mask is not None
    ]
    assert steps[-6:] == [(3, 10), (3, 11), (3, 12), (2, 7), (2, 8), (2, 9)]


def test_prompts_of_similar_length_go_through_the_model_together_without_padding_before_them(
    gpt2: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = requests([13, 12, 11, 4, 4, 1], 1)
    with Rows(gpt2) as given:
        BatchedEngine().extend(gpt2, asked, Decoding(end=END))
    assert given.shapes == [(3, 12), (2, 3), (6, 1)]
    monkeypatch.setattr(decoding_state, "PREFILL_TOKENS", 24)
    with Rows(gpt2) as given:
        BatchedEngine().extend(gpt2, asked, Decoding(end=END))
    assert given.shapes == [(2, 12), (1, 10), (2, 3), (6, 1)]


@pytest.mark.parametrize("budget", [1, 4000, 16_000])
def test_a_batch_stays_within_its_memory(gpt2: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, budget: int) -> None:
    held = []
    grow = KeyValues.grow

    def watched(cache: KeyValues, capacity: int) -> None:
        grow(cache, capacity)
        held.append((cache.rows, sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)))

    monkeypatch.setattr(KeyValues, "grow", watched)
    BatchedEngine(budget).extend(gpt2, requests([1, 2, 3, 3] * 3, 30), Decoding(banned=[END], end=END))
    assert held
    assert all(size <= budget or rows == 1 for rows, size in held)
    assert (max(rows for rows, _ in held) > 1) == (budget == 16_000)


@pytest.mark.parametrize("name", PADDED)
def test_the_size_of_a_token_is_what_a_cache_holds(name: str) -> None:
    model = sharp(PADDED[name])
    cache = KeyValues(3, 0, 7)
    with torch.no_grad():
        ModelCalls.of(model).last_logits(torch.tensor([[5]] * 3), cache, torch.zeros(3, 1, dtype=torch.int64), None)
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert held == 3 * 7 * bytes_per_token(model.config, model.dtype)
    assert cache_budget(torch.device("cpu")) > 0
