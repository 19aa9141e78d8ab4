"""Models: building, loading, and conversion to and from bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.activations import ACT2FN

from ray_l4.config.model import ModelConfig
from ray_l4.errors import ModelError, PeerError
from ray_l4.learner import models
from ray_l4.learner.models import (
    arithmetic,
    build_model,
    from_description,
    load_bytes,
    load_folder,
    pick_device,
    to_bytes,
)
from ray_l4.text.tokenizer import TaskTokenizer
from tests.learner import learner_fixtures as small
from tests.learner.architectures import COHERE, GEMMA2, GPT2, LLAMA, VOCABULARY, tokens, untrained


def same(one: PreTrainedModel, other: PreTrainedModel) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


# --- bytes


@pytest.mark.parametrize("config", [GPT2, LLAMA, GEMMA2], ids=["tied", "untied", "tied by name"])
def test_weights_survive_conversion_to_bytes(config: PreTrainedConfig) -> None:
    model, other = untrained(config), untrained(config, seed=1)
    assert not same(model, other)
    weights = to_bytes(model)
    assert (weights.dtype, weights.ndim) == (np.uint8, 1)
    weights.setflags(write=False)  # as the object store returns them
    load_bytes(other, weights)
    assert same(model, other)
    assert other.config.tie_word_embeddings == (
        other.get_output_embeddings().weight is other.get_input_embeddings().weight
    )


def test_bytes_are_a_copy_that_later_training_does_not_change() -> None:
    model = untrained(GPT2)
    weights = to_bytes(model)
    before = weights.tobytes()
    with torch.no_grad():
        model.get_input_embeddings().weight.zero_()
    assert weights.tobytes() == before


def test_loaded_weights_can_be_trained() -> None:
    model = untrained(GPT2)
    weights = to_bytes(model)
    load_bytes(model, weights)
    before = weights.tobytes()
    with torch.no_grad():
        model.get_input_embeddings().weight.add_(1)
    assert weights.tobytes() == before
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"n_embd": 32}, "size mismatch"),
        ({"vocab_size": VOCABULARY + 1}, r"size mismatch for transformer\.wte\.weight"),
        ({"n_layer": 3}, r"missing \['transformer\.h\.2"),
        ({"n_layer": 1}, r"unexpected \['transformer\.h\.1"),
    ],
)
def test_weights_of_another_model_are_refused(other: dict[str, int], message: str) -> None:
    smaller = GPT2Config.from_dict(GPT2.to_dict() | other)
    with pytest.raises(ModelError, match=f"weights do not fit the model: .*{message}"):
        load_bytes(untrained(smaller), to_bytes(untrained(GPT2)))


def test_damaged_weights_are_refused() -> None:
    model = untrained(GPT2)
    weights = to_bytes(model)
    for damaged in (weights[:-1], weights[:5], np.zeros(100, np.uint8)):
        with pytest.raises(ModelError, match=rf"weights of {damaged.nbytes} bytes are damaged"):
            load_bytes(model, damaged)


@pytest.mark.parametrize("config", [GPT2, LLAMA, COHERE, GEMMA2], ids=lambda config: config.model_type)
def test_a_description_gives_the_same_architecture(config: PreTrainedConfig) -> None:
    model = untrained(config)
    description = json.loads(json.dumps(model.config.to_dict()))  # as read from config.json
    twin = from_description(description)
    assert type(twin) is type(model)
    load_bytes(twin, to_bytes(model))
    assert torch.equal(twin.eval()(input_ids=tokens()).logits, model(input_ids=tokens()).logits)


# --- models from scratch and pretrained models


def test_a_model_from_scratch_has_the_requested_shape() -> None:
    tok = small.tokenizer()
    shape = {"layers": 3, "width": 24, "heads": 4, "positions": 48, "dropout": 0.25}
    model = build_model(ModelConfig.model_validate({"from_scratch": shape}), tok, 0)
    assert isinstance(model, GPT2LMHeadModel)
    c = model.config
    assert (c.n_layer, c.n_embd, c.n_head, c.n_positions, c.vocab_size) == (3, 24, 4, 48, tok.size)
    assert (c.embd_pdrop, c.attn_pdrop, c.resid_pdrop, c.eos_token_id) == (0.25, 0.25, 0.25, tok.eos)


def test_the_gelu_of_a_model_from_scratch_is_that_of_gpt2_in_one_operator() -> None:
    model = build_model(small.experiment().model, small.tokenizer(), 0)
    fused, plain = model.transformer.h[0].mlp.act, ACT2FN["gelu_new"]
    values = torch.linspace(-6, 6, 1001)
    mine, theirs = values.clone().requires_grad_(), values.clone().requires_grad_()
    with torch.profiler.profile() as profiler:
        out = fused(mine)
    assert len([event for event in profiler.events() if event.name.startswith("aten::")]) == 1
    expected = plain(theirs)
    (slope,), (other,) = torch.autograd.grad(out.sum(), mine), torch.autograd.grad(expected.sum(), theirs)
    assert torch.allclose(out, expected, atol=1e-6, rtol=0)
    assert torch.allclose(slope, other, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("width", "expected"), [(48, 0.08), (192, 0.04)])
def test_narrow_models_start_from_larger_weights(width: int, expected: float) -> None:
    """GPT-2's standard deviation of 0.02 is scaled by the square root of GPT-2's width over the model's."""
    shape = {"layers": 1, "width": width, "heads": 2}
    model = build_model(ModelConfig.model_validate({"from_scratch": shape}), small.tokenizer(), 0)
    for matrix in (model.transformer.wte.weight, model.transformer.h[0].attn.c_attn.weight):
        assert float(matrix.detach().std()) == pytest.approx(expected, rel=0.05)


def test_weights_follow_from_the_seed_alone() -> None:
    tok, config = small.tokenizer(), small.experiment().model
    torch.manual_seed(1)
    one = build_model(config, tok, 7)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    two = build_model(config, tok, 7)
    assert same(one, two)
    assert not same(one, build_model(config, tok, 8))
    assert torch.equal(torch.get_rng_state(), before), "nobody else's numbers are drawn"


@pytest.fixture(scope="module")
def tok() -> TaskTokenizer:
    return small.tokenizer()


def saved(folder: Path, tok: TaskTokenizer, config: PreTrainedConfig, missing: int = 0) -> Path:
    """Save a model that has ``missing`` rows fewer than the tokeniser has tokens."""
    config = type(config).from_dict(config.to_dict() | {"vocab_size": tok.size - missing})
    untrained(config).save_pretrained(folder)
    tok.save(folder)
    return folder


@pytest.mark.parametrize("config", [GPT2, LLAMA], ids=["tied", "untied"])
def test_new_rows_are_drawn_and_old_ones_kept(tmp_path: Path, tok: TaskTokenizer, config: PreTrainedConfig) -> None:
    """New rows come from N(0, 0.02), not from the statistics of the old ones (REFERENCE.md#embedding-growth)."""
    missing = 90
    folder = saved(tmp_path, tok, config, missing)
    old = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for matrix in (old.get_input_embeddings().weight, old.get_output_embeddings().weight):
            matrix.add_(1.0)  # new rows must not follow the old statistics
    old.save_pretrained(folder)
    model = build_model(ModelConfig(name=str(folder)), tok, 0)
    assert model.config.vocab_size == tok.size
    for grown, before in (
        (model.get_input_embeddings().weight, old.get_input_embeddings().weight),
        (model.get_output_embeddings().weight, old.get_output_embeddings().weight),
    ):
        assert grown.shape == (tok.size, 16)
        assert torch.equal(grown[:-missing], before)
        new = grown[-missing:].detach()
        assert float(new.std()) == pytest.approx(0.02, rel=0.1)  # of 1,440 numbers: 5 standard deviations
        assert float(new.mean()) == pytest.approx(0.0, abs=0.003)
    assert same(model, build_model(ModelConfig(name=str(folder)), tok, 0))
    assert not same(model, build_model(ModelConfig(name=str(folder)), tok, 1))


def test_a_model_with_more_rows_than_tokens_keeps_them(tmp_path: Path, tok: TaskTokenizer) -> None:
    folder = saved(tmp_path, tok, GPT2, missing=-13)
    model, _ = load_folder(folder)
    assert model.get_input_embeddings().num_embeddings == tok.size + 13


@pytest.mark.parametrize("config", [GPT2, LLAMA], ids=["tied", "untied"])
def test_rows_that_a_model_has_to_spare_are_drawn_for_new_tokens(
    tmp_path: Path, tok: TaskTokenizer, config: PreTrainedConfig
) -> None:
    """Input and, unless tied, output rows; from the seed, like rows that are added; and no others."""
    folder = saved(tmp_path, tok, config, missing=-13)
    old = AutoModelForCausalLM.from_pretrained(folder)
    one, same_seed, other = (build_model(ModelConfig(name=str(folder)), tok, seed) for seed in (0, 0, 1))
    assert same(one, same_seed)
    added = sorted({tok.ans, tok.pad, tok.unk, *tok.task_tokens})
    kept = [row for row in range(tok.size + 13) if row not in added]
    matrices = [
        (model.get_input_embeddings().weight.detach(), model.get_output_embeddings().weight.detach())
        for model in (old, one, other)
    ]
    for before, mine, theirs in zip(*matrices, strict=True):
        assert torch.equal(mine[kept], before[kept]) and torch.equal(theirs[kept], before[kept])
        for pair in ((mine, theirs), (mine, before)):
            assert all(not torch.equal(pair[0][row], pair[1][row]) for row in added)
        assert float(mine[added].std()) == pytest.approx(0.02, rel=0.3)
    is_tied = matrices[1][0].data_ptr() == matrices[1][1].data_ptr()
    assert is_tied == one.config.tie_word_embeddings
    assert is_tied or not torch.equal(matrices[1][0][added], matrices[1][1][added])


def test_added_rows_are_those_of_before(tmp_path: Path, tok: TaskTokenizer) -> None:
    """Where all new tokens get added rows, nothing else is drawn: numbers of earlier versions stay."""
    missing = len(tok.fresh.difference(range(tok.ans)))
    folder = saved(tmp_path, tok, LLAMA, missing)
    model = build_model(ModelConfig(name=str(folder)), tok, 3)
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    torch.manual_seed(3)
    plain.resize_token_embeddings(tok.size, mean_resizing=False)
    assert same(model, plain)


def test_a_checkpoint_keeps_the_rows_of_its_tasks(tmp_path: Path, tok: TaskTokenizer) -> None:
    folder = saved(tmp_path, tok, LLAMA)
    old = AutoModelForCausalLM.from_pretrained(folder).get_input_embeddings().weight
    later = TaskTokenizer.pretrained(folder, ["a", "new"], 2)
    new = build_model(ModelConfig(name=str(folder)), later, 0).get_input_embeddings().weight
    changed = (old != new).any(dim=1).nonzero().flatten().tolist()
    assert changed == [later.gen["new"]] == [tok.spares[0]]


def test_half_precision_weights_and_their_description_become_float32(tmp_path: Path, tok: TaskTokenizer) -> None:
    folder = saved(tmp_path, tok, GPT2)
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    assert load_file(folder / "model.safetensors")["transformer.wte.weight"].dtype == torch.bfloat16
    model, _ = load_folder(folder)
    for each in (model, from_description(model.config.to_dict())):
        assert {parameter.dtype for parameter in each.parameters()} == {torch.float32}


def rewrite_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def break_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:300])


def forget_a_layer(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith("transformer.h.1.")}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "cannot load"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot load"),
        (lambda folder: rewrite_config(folder, model_type="nonsense"), "cannot load"),
        (lambda folder: rewrite_config(folder, n_embd=32), "cannot load"),
        (break_weights, r"cannot load .*/model\.safetensors is damaged: .*Copy or download it again"),
        (forget_a_layer, r"not complete: transformer\.h\.1\.\S+ .*missing"),
    ],
    ids=["no weights", "no config", "unknown type", "other shapes", "cut off", "incomplete"],
)
def test_a_damaged_model_is_refused(tmp_path: Path, tok: TaskTokenizer, damage: Any, message: str) -> None:
    folder = saved(tmp_path, tok, GPT2)
    damage(folder)
    with pytest.raises(ModelError, match=rf"(?s)model\.name: .*{message}"):
        build_model(ModelConfig(name=str(folder)), tok, 0)


def test_a_folder_without_task_tokens_is_refused_as_a_checkpoint(tmp_path: Path) -> None:
    untrained(GPT2).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"does not contain a tokeniser of ray-l4"):
        load_folder(tmp_path)


# --- arithmetic and devices


def test_bfloat16_applies_to_arithmetic_and_not_to_weights() -> None:
    model, device = untrained(GPT2), torch.device("cpu")
    exact = model(input_ids=tokens()).logits
    for precision, expected in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        config = ModelConfig.model_validate({"name": "any", "precision": precision})
        with arithmetic(config, device):
            logits = model(input_ids=tokens()).logits
        assert logits.dtype == expected
        torch.testing.assert_close(logits.float(), exact, rtol=0.05, atol=0.01)
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_the_device_follows_from_the_reserved_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models.torch.cuda, "is_available", lambda: False)
    assert pick_device(0) == torch.device("cpu")
    with pytest.raises(PeerError, match=r"reserved for this process: 0\.5, .*CUDA build"):
        pick_device(0.5)
    monkeypatch.setattr(models.torch.cuda, "is_available", lambda: True)
    assert pick_device(0.5) == torch.device("cuda")
    assert pick_device(0) == torch.device("cpu"), "a GPU that was not asked for belongs to others"


@pytest.mark.parametrize("tied", [True, False])
def test_weights_with_fewer_tokens_get_rows_that_depend_on_their_number_alone(tied: bool) -> None:
    small, medium, large = (
        GPT2Config.from_dict(GPT2.to_dict() | {"vocab_size": VOCABULARY + more, "tie_word_embeddings": tied})
        for more in (0, 2, 3)
    )
    known, at_once, step, by_steps, other = (untrained(config) for config in (small, large, medium, large, large))
    load_bytes(at_once, to_bytes(known), seed=5)
    load_bytes(step, to_bytes(known), seed=5)
    load_bytes(by_steps, to_bytes(step), seed=5)
    load_bytes(other, to_bytes(known), seed=6)
    rows = [model.get_input_embeddings().weight for model in (known, at_once, by_steps, other)]
    assert torch.equal(rows[1][:VOCABULARY], rows[0]) and torch.equal(rows[2], rows[1])
    assert torch.equal(rows[3][:VOCABULARY], rows[0]) and not torch.equal(rows[3], rows[1])
    heads = [model.get_output_embeddings().weight for model in (known, at_once, by_steps)]
    assert torch.equal(heads[1][:VOCABULARY], heads[0]) and torch.equal(heads[2], heads[1])
    new = torch.cat([row[VOCABULARY:] for row in rows[1:3]])
    assert 0.5 * GPT2.initializer_range < new.std() < 2 * GPT2.initializer_range
    assert len({tuple(row.tolist()) for row in rows[1][VOCABULARY:]}) == 3, "every row is drawn for itself"


def test_weights_with_more_tokens_than_the_model_are_refused() -> None:
    larger = GPT2Config.from_dict(GPT2.to_dict() | {"vocab_size": VOCABULARY + 1})
    with pytest.raises(ModelError, match="size mismatch"):
        load_bytes(untrained(GPT2), to_bytes(untrained(larger)), seed=5)
