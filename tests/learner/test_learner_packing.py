"""Packed batches against the grid with padding, in hidden states and all gradients, for many architectures."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import (
    BambaConfig,
    BloomConfig,
    GPTNeoConfig,
    MambaConfig,
    MistralConfig,
    OPTConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2MoeConfig,
)

from ray_l4.learner import packed_attention
from ray_l4.learner.dropout import use_cheap_masks
from ray_l4.learner.models import describe, set_dropout, to_bytes
from ray_l4.learner.packed_attention import NAME
from ray_l4.learner.packing import learns_packed, run_packed, runs_packed, use_packed_attention
from ray_l4.learner.position_logits import PositionLogits
from ray_l4.learner.pretrained import recompute_activations
from ray_l4.learner.sequences import Sequences
from tests.learner import adapter_fixtures as adapted
from tests.learner.architectures import (
    COHERE,
    GEMMA2,
    GPT2,
    GRANITE,
    LLAMA,
    NEOX,
    SIZES,
    VOCABULARY,
    logits_at,
    untrained,
)

WINDOW = 4
_SHARED_KEYS = {"num_attention_heads": 4, "num_key_value_heads": 2}
MISTRAL = MistralConfig(**SIZES | _SHARED_KEYS, sliding_window=WINDOW)
QWEN2 = Qwen2Config(**SIZES | _SHARED_KEYS)
QWEN2_WINDOW = Qwen2Config(
    **SIZES | _SHARED_KEYS,
    use_sliding_window=True,
    sliding_window=WINDOW,
    layer_types=["full_attention", "sliding_attention"],
)
OPT = OPTConfig(**SIZES, word_embed_proj_dim=16, ffn_dim=32)
PACKED = {
    "gpt2": GPT2,
    "llama": LLAMA,
    "neox": NEOX,
    "granite": GRANITE,
    "cohere": COHERE,
    "opt": OPT,
    "mistral": MISTRAL,
    "qwen2": QWEN2,
    "qwen2, window": QWEN2_WINDOW,
}

HIDDEN_WINDOW = Qwen2MoeConfig(
    **SIZES,
    num_key_value_heads=2,
    use_sliding_window=True,
    sliding_window=8,
    layer_types=["sliding_attention"] * 2,
    num_experts=2,
    num_experts_per_tok=1,
    moe_intermediate_size=16,
    shared_expert_intermediate_size=16,
)
"""Its masks have a window, of which it tells its attention nothing; the few tokens of the comparison are within it."""
NOT_PACKED = {
    "gemma2, whose scores have a soft cap": GEMMA2,
    "bloom, whose positions are in a mask": BloomConfig(vocab_size=VOCABULARY, hidden_size=16, n_layer=2, n_head=2),
    "neo, which has attention of its own": GPTNeoConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        attention_types=[[["global", "local"], 1]],
        window_size=4,
        max_position_embeddings=32,
    ),
    "mamba, which has none": MambaConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, state_size=4),
    "bamba, which has recurrent layers too": BambaConfig(
        **SIZES,
        num_key_value_heads=2,
        attn_layer_indices=[1],
        mamba_n_heads=4,
        mamba_d_head=8,
        mamba_n_groups=1,
        mamba_d_state=4,
        mamba_chunk_size=4,
    ),
    "qwen2_moe, whose window is in a mask alone": HIDDEN_WINDOW,
}

LENGTHS = [9, 1, 5, 12, 2]

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.05}
"""Of the norm of a difference, relative to the norm, after two layers whose every product is rounded by up to 2^-8."""


def lively(config: PreTrainedConfig) -> PreTrainedModel:
    """Build a model with attention so large that a token's hidden state depends on the others."""
    model = untrained(config)
    if config.model_type in ("mamba", "bamba"):
        return model  # their gates would saturate
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "embed" not in name:
                parameter.mul_(8)
    return model


def grid(lengths: list[int], seed: int = 1) -> Tensor:
    """Draw ids, (rows, longest); the padding on the right has ids too, which must not matter."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(VOCABULARY, (len(lengths), max(lengths)), generator=generator)


def places(lengths: list[int]) -> Tensor:
    """List all positions that are not padding, the last sequence first."""
    width = max(lengths)
    spans = [torch.arange(row * width, row * width + length) for row, length in enumerate(lengths)]
    return torch.cat(spans[::-1])


def outputs_of(chosen: PositionLogits, lengths: list[int]) -> Tensor:
    found = chosen(grid(lengths), places(lengths), lengths)
    outputs = found.logits_NV if found.hidden_ND is None else found.hidden_ND
    assert outputs is not None
    return outputs


def plain_outputs(model: PreTrainedModel, lengths: list[int], hidden: bool) -> Tensor:
    """Run an unchanged model on every sequence by itself."""
    run = model.base_model if hidden else model
    rows = [
        run(input_ids=ids[None, :length], use_cache=False) for ids, length in zip(grid(lengths), lengths, strict=True)
    ]
    return torch.cat([(own.last_hidden_state if hidden else own.logits)[0] for own in rows[::-1]])


def gradients(outputs: Tensor, model: nn.Module) -> dict[str, Tensor]:
    """Return the gradients of a sum of the outputs with random factors."""
    model.zero_grad()
    factors = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(7)).to(outputs.dtype)
    outputs.backward(factors)
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_close(mine: Tensor, theirs: Tensor, allowed: float, name: str) -> None:
    assert float((mine.detach().float() - theirs.detach().float()).norm()) <= allowed, name


def assert_same_run(chosen: PositionLogits, twin: PreTrainedModel, lengths: list[int], tolerance: float) -> None:
    """Compare hidden states or logits, and the gradients of all parameters, with those of an unchanged model."""
    mine, theirs = outputs_of(chosen, lengths), plain_outputs(twin, lengths, chosen.head is not None)
    assert_close(mine, theirs, tolerance * float(theirs.detach().float().norm()), "outputs")
    found, expected = gradients(mine, chosen.model), gradients(theirs, twin)
    assert found.keys() == expected.keys()
    largest = max(float(gradient.float().norm()) for gradient in expected.values())
    for name, gradient in expected.items():
        assert_close(found[name], gradient, tolerance * max(float(gradient.float().norm()), 1e-2 * largest), name)


@pytest.mark.parametrize("name", PACKED)
def test_packed_sequences_equal_separate_ones(name: str) -> None:
    model = lively(PACKED[name])
    twin = copy.deepcopy(model)
    chosen = PositionLogits(model)
    assert chosen.packed
    assert_same_run(chosen, twin, LENGTHS, TOLERANCE[torch.float32])


@pytest.mark.parametrize("name", PACKED)
def test_sequences_see_tokens_of_their_own_only(name: str) -> None:
    """Otherwise the test above could pass for a model in which attention does nothing."""
    chosen = PositionLogits(lively(PACKED[name]))
    ids, positions_N = grid(LENGTHS), places(LENGTHS)
    before = logits_at_places(chosen, ids, positions_N)
    changed = ids.clone()
    changed[0, 0] = (ids[0, 0] + 1) % VOCABULARY
    after = logits_at_places(chosen, changed, positions_N)
    moved = (before != after).any(dim=1)
    of_first = positions_N < max(LENGTHS)
    assert torch.equal(moved[~of_first], torch.zeros_like(moved[~of_first]))
    window = WINDOW if name == "mistral" else max(LENGTHS)
    reached = 2 * (window - 1) + 1  # over two layers
    assert torch.equal(moved[of_first], torch.arange(LENGTHS[0]) < reached)


def logits_at_places(chosen: PositionLogits, ids: Tensor, positions_N: Tensor) -> Tensor:
    found = chosen(ids, positions_N, LENGTHS)
    outputs = found.logits_NV if found.hidden_ND is None else found.hidden_ND
    assert outputs is not None
    return outputs.detach()


@pytest.mark.parametrize("name", adapted.CONFIGS)
def test_a_model_with_adapters_packs_and_keeps_its_gradients(name: str, tmp_path: Path) -> None:
    base = adapted.save_base(tmp_path / "base", adapted.CONFIGS[name])
    model = adapted.disturb(adapted.build(base)[0]).eval()
    twin = copy.deepcopy(model)
    chosen = PositionLogits(model)
    assert chosen.packed
    assert_same_run(chosen, twin, LENGTHS, TOLERANCE[torch.float32])
    assert any("lora" in name and p.grad is not None and p.grad.any() for name, p in model.named_parameters())


@settings(max_examples=15)
@given(lengths=st.lists(st.integers(1, 14), min_size=1, max_size=5), name=st.sampled_from(("gpt2", "mistral")))
def test_batches_of_any_lengths_equal_separate_sequences(lengths: list[int], name: str) -> None:
    model = lively(PACKED[name])
    twin = copy.deepcopy(model)
    assert_same_run(PositionLogits(model), twin, lengths, TOLERANCE[torch.float32])


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16], ids=["autocast", "weights"])
def test_bfloat16_is_close_to_separate_sequences_in_float32(name: str, weights: torch.dtype) -> None:
    model = untrained(PACKED[name])
    twin = copy.deepcopy(model).float()
    model = model.to(weights)
    narrow = weights == torch.float32
    chosen = PositionLogits(
        model, arithmetic=(lambda: torch.autocast("cpu", torch.bfloat16)) if narrow else nullcontext
    )
    assert chosen.packed
    assert_same_run(chosen, twin, LENGTHS, TOLERANCE[torch.bfloat16])


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16], ids=["autocast", "weights"])
def test_a_training_step_in_bfloat16_with_dropout_has_gradients(name: str, weights: torch.dtype) -> None:
    model = untrained(PACKED[name]).to(weights)
    set_dropout(model, 0.1, name)
    use_cheap_masks(model.train())
    chosen = PositionLogits(model, arithmetic=lambda: torch.autocast("cpu", torch.bfloat16, weights == torch.float32))
    assert chosen.packed
    found = gradients(outputs_of(chosen, LENGTHS), model)
    assert all(bool(gradient.isfinite().all()) for gradient in found.values())
    assert sum(bool(gradient.any()) for gradient in found.values()) > len(found) / 2


@pytest.mark.parametrize("name", NOT_PACKED)
def test_other_architectures_keep_the_grid(name: str) -> None:
    model = lively(NOT_PACKED[name])
    before, implementation = describe(model), model.config._attn_implementation
    twin = copy.deepcopy(model)
    chosen = PositionLogits(model)
    assert not chosen.packed
    assert (describe(model), model.config._attn_implementation) == (before, implementation)
    assert_same_run(chosen, twin, LENGTHS, TOLERANCE[torch.float32])


def test_an_architecture_without_the_interface_keeps_the_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    model = lively(LLAMA)
    twin = copy.deepcopy(model)
    monkeypatch.setattr(type(model), "_supports_attention_backend", False)
    chosen = PositionLogits(model)
    assert not chosen.packed and not runs_packed(model)
    assert_same_run(chosen, twin, LENGTHS, TOLERANCE[torch.float32])


def test_a_model_without_a_base_model_keeps_the_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    """It gives no hidden states to compare."""
    model = lively(LLAMA)
    twin = copy.deepcopy(model)
    monkeypatch.setattr(model, "base_model_prefix", "")
    assert model.base_model is model
    chosen = PositionLogits(model)
    assert not chosen.packed and not chosen.direct
    monkeypatch.undo()
    assert_same_run(chosen, twin, LENGTHS, TOLERANCE[torch.float32])


@pytest.mark.parametrize("kind", [KeyError, AssertionError, TypeError])
def test_a_model_that_fails_on_packed_sequences_keeps_the_grid(
    kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = untrained(LLAMA).train()
    whole = type(model.base_model).forward

    def forward(self: nn.Module, *arguments: Any, **named: Any) -> Any:
        if "sequences" in named:
            raise kind("sequences")
        return whole(self, *arguments, **named)

    monkeypatch.setattr(type(model.base_model), "forward", forward)
    assert not use_packed_attention(model)
    assert model.training and model.config._attn_implementation == "sdpa"


def test_a_model_that_packs_wrongly_keeps_the_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = packed_attention._by_group
    monkeypatch.setattr(packed_attention, "_by_group", lambda *given: whole(*given).flip(0))
    model = untrained(GPT2)
    assert not use_packed_attention(model)
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("name", PACKED)
def test_a_switched_model_still_runs_on_grids(name: str) -> None:
    """Answers are decoded from prompts with padding on the left."""
    model = lively(PACKED[name])
    twin = copy.deepcopy(model)
    before = describe(model), to_bytes(model).tobytes()
    assert use_packed_attention(model)
    assert (describe(model), to_bytes(model).tobytes()) == before
    ids_RT, mask_RT = grid(LENGTHS).flip(1), torch.ones(len(LENGTHS), max(LENGTHS), dtype=torch.int64)
    for row, length in enumerate(LENGTHS):
        mask_RT[row, : max(LENGTHS) - length] = 0
    for given_mask in (mask_RT, None):
        mine, theirs = (own(input_ids=ids_RT, attention_mask=given_mask).logits for own in (model, twin))
        real = mask_RT.bool()
        torch.testing.assert_close(mine[real], theirs[real], rtol=0, atol=0)
    decoded = [
        own.generate(input_ids=ids_RT, attention_mask=mask_RT, max_new_tokens=6, do_sample=False, pad_token_id=0)
        for own in (model, twin)
    ]
    assert torch.equal(*decoded)


@pytest.mark.parametrize("name", ["gpt2", "mistral", "qwen2, window"])
def test_no_mask_is_made_while_packing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = untrained(PACKED[name])
    assert use_packed_attention(model)
    calls: list[Any] = []
    whole = packed_attention.sdpa_mask
    monkeypatch.setattr(packed_attention, "sdpa_mask", lambda *args, **named: calls.append(named) or whole(**named))
    ids_1S = grid(LENGTHS).flatten()[None, : sum(LENGTHS)]
    run_packed(model.base_model, ids_1S, Sequences(LENGTHS, model.device))
    assert calls == []
    model(input_ids=ids_1S)
    assert calls, "a grid has one"


@pytest.mark.parametrize("training", [True, False])
def test_probing_has_no_side_effects(training: bool) -> None:
    model = untrained(GPT2).train(training)
    before, random = to_bytes(model).tobytes(), torch.get_rng_state()
    assert use_packed_attention(model)
    assert (model.training, model.config._attn_implementation) == (training, NAME)
    assert to_bytes(model).tobytes() == before
    assert torch.equal(torch.get_rng_state(), random)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("name", [*PACKED, *NOT_PACKED])
def test_the_plan_finds_out_without_values(name: str) -> None:
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert runs_packed(untrained((PACKED | NOT_PACKED)[name])) == (name in PACKED)


@pytest.mark.parametrize("name", ["gpt2", "llama", "mistral"])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_activations_that_are_computed_again_give_the_same_gradients(name: str, dropout: float) -> None:
    found = []
    for again in (False, True):
        model = lively(PACKED[name])
        set_dropout(model, dropout, name)
        use_cheap_masks(model.train())
        if again:
            recompute_activations(model)
        chosen = PositionLogits(model)
        assert chosen.packed
        torch.manual_seed(4)
        outputs = outputs_of(chosen, LENGTHS)
        torch.rand(3)  # others draw between the two passes
        found.append(gradients(outputs, model))
    assert found[0].keys() == found[1].keys()
    for key, gradient in found[0].items():
        assert torch.equal(gradient, found[1][key]), key


def test_a_batch_of_one_token_without_a_loss_has_zero_gradients() -> None:
    """Such is the batch of a rank without an example."""
    model = untrained(GPT2)
    chosen = PositionLogits(model)
    found = chosen(torch.zeros(1, 1, dtype=torch.int64), torch.empty(0, dtype=torch.int64), [1])
    assert found.hidden_ND is not None and found.hidden_ND.shape == (0, 16)
    found.hidden_ND.sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_positions_may_repeat_and_come_in_any_order() -> None:
    chosen = PositionLogits(lively(GPT2))
    ids_RT = grid([7, 7])
    positions_N = torch.tensor([13, 0, 6, 6, 8])
    expected = chosen.model(input_ids=ids_RT).logits.flatten(0, 1)[positions_N]
    torch.testing.assert_close(logits_at(chosen, ids_RT, positions_N), expected)


@pytest.mark.parametrize("training", [True, False])
def test_trying_whether_a_model_learns_has_no_side_effects(training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On an accelerator, whose kernels may know neither dropout nor the type."""
    model = untrained(GPT2).train(training)
    assert use_packed_attention(model)
    before, random = to_bytes(model).tobytes(), torch.get_rng_state()
    assert learns_packed(model)
    assert to_bytes(model).tobytes() == before and torch.equal(torch.get_rng_state(), random)
    assert all(parameter.grad is None for parameter in model.parameters()) and model.training == training

    def refused(*arguments: Any) -> Any:
        raise RuntimeError("No available kernel")

    monkeypatch.setattr(packed_attention.AttentionWithDropout, "apply", refused)
    assert not learns_packed(model)
    assert model.training == training
