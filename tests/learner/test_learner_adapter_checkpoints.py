"""Checkpoints with adapters, and the layers that adapters are added to."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GPTJConfig

from ray_l4.config.experiment import EvaluationConfig, ReplayConfig
from ray_l4.config.model import ModelConfig
from ray_l4.errors import ModelError
from ray_l4.learner.answering import answer, generate_replay
from ray_l4.learner.model_config import pretrained_config
from ray_l4.learner.models import build_model, load_folder, to_bytes
from ray_l4.learner.position_logits import PositionLogits
from ray_l4.store.records import read_weights
from ray_l4.text.test_sets import build_test_set
from tests.learner import adapter_fixtures as adapted
from tests.learner import learner_fixtures as small
from tests.learner.adapter_fixtures import build, logits
from tests.learner.architectures import GRANITE


@pytest.fixture(scope="module", params=list(adapted.CONFIGS))
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return adapted.save_base(tmp_path_factory.mktemp("base"), adapted.CONFIGS[request.param])


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return adapted.save_base(tmp_path_factory.mktemp("gpt2"), adapted.CONFIGS["gpt2, tied"])


def test_peft_loads_a_checkpoint(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tok = build(base)
    folder = adapted.save_checkpoint(tmp_path, adapted.disturb(model), tok)
    monkeypatch.chdir(tmp_path)  # the base is found from any working directory
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # about missing or unknown weights and settings
        loaded = peft.AutoPeftModelForCausalLM.from_pretrained(folder)
    assert torch.equal(logits(loaded), logits(model))


def test_load_folder_restores_a_checkpoint_bit_for_bit(base: Path, tmp_path: Path) -> None:
    model, tok = build(base)
    folder = adapted.save_checkpoint(tmp_path, adapted.disturb(model), tok)
    assert not {"config.json", "model.safetensors"} & {path.name for path in folder.iterdir()}
    loaded, tokenizer = load_folder(folder)
    assert torch.equal(logits(loaded), logits(model))
    assert (tokenizer.gen, tokenizer.spares) == (tok.gen, tok.spares)
    assert read_weights(folder).tobytes() == to_bytes(model).tobytes()
    assert to_bytes(loaded).tobytes() == to_bytes(model).tobytes()
    assert load_file(folder / "adapter_model.safetensors").keys() == {
        "base_model.model." + name.replace(".default", "") for name, p in model.named_parameters() if p.requires_grad
    }


def test_a_loaded_checkpoint_answers_and_generates_like_the_model_in_memory(base: Path, tmp_path: Path) -> None:
    model, tok = build(base)
    loaded, _ = load_folder(adapted.save_checkpoint(tmp_path, adapted.disturb(model), tok))
    config = EvaluationConfig(max_new_tokens=5)
    tests = build_test_set(small.examples("a", 5), "em", tok, 64, config)
    assert answer(loaded, tok, tests, config, 0).predictions == answer(model, tok, tests, config, 0).predictions
    pair = [generate_replay(m, tok, [tok.gen["a"]] * 3, [1, 2, 3], 12, ReplayConfig()) for m in (loaded, model)]
    assert all(np.array_equal(x, y) for x, y in zip(*pair, strict=True))


def edit(folder: Path, **changes: object) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.filterwarnings("ignore:Unexpected keyword arguments")
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: edit(folder, base_model_name_or_path="gone"), "name_or_path: 'gone' is neither a folder"),
        (lambda folder: edit(folder, base_model_name_or_path=None), "does not describe LoRA adapters on a named model"),
        (lambda folder: edit(folder, peft_type="IA3"), "does not describe LoRA"),
        (lambda folder: edit(folder, target_modules=["nothing"]), "adapters do not fit GPT2LMHeadModel"),
        (
            lambda folder: edit(folder, trainable_token_indices={"transformer.wte": [10**6]}),
            "do not fit GPT2LMHeadModel",
        ),
        (lambda folder: edit(folder, r=2), "size mismatch"),
        (lambda folder: (folder / "adapter_config.json").write_text("{"), r"adapter_config\.json cannot be read"),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), r"no adapter_model\.safetensors"),
        (
            lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"short"),
            r"/adapter_model\.safetensors is damaged",
        ),
    ],
)
def test_a_damaged_checkpoint_is_refused(gpt2: Path, tmp_path: Path, damage: object, message: str) -> None:
    folder = adapted.save_checkpoint(tmp_path, *build(gpt2))
    (folder / "SHA256SUMS").unlink()  # as of an earlier version
    damage(folder)  # type: ignore[operator]
    with pytest.raises(ModelError, match=message):
        load_folder(folder)


@pytest.mark.filterwarnings("ignore:Unexpected keyword arguments")
@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_a_flipped_bit_is_noticed(gpt2: Path, tmp_path: Path, name: str) -> None:
    path = adapted.save_checkpoint(tmp_path, *build(gpt2)) / name
    data = path.read_bytes()
    path.write_bytes(data[:-3] + bytes([data[-3] ^ 1]) + data[-2:])
    with pytest.raises(ModelError, match=rf"{path} is damaged: its SHA-256 is not the one"):
        load_folder(path.parent)


def test_a_run_cannot_start_from_adapters(gpt2: Path, tmp_path: Path) -> None:
    folder = adapted.save_checkpoint(tmp_path, *build(gpt2))
    with pytest.raises(ModelError, match=r"model\.name: .* holds adapters, not a model\. .*ray-l4 merge"):
        pretrained_config(str(folder))


# --- layers with adapters


def test_layers_can_be_chosen(gpt2: Path) -> None:
    model, _ = build(gpt2, targets=["c_fc", "attn.c_proj"])
    names = {name.split(".lora_A")[0] for name, _ in model.named_parameters() if ".lora_A" in name}
    assert names == {f"transformer.h.{i}.{layer}" for i in (0, 1) for layer in ("mlp.c_fc", "attn.c_proj")}


def test_unknown_layers_are_reported_with_the_known_ones(gpt2: Path) -> None:
    expected = (
        r"model\.lora\.targets: a 'gpt2' model has no layer 'q_proj'\. Layers of this model: c_attn, c_fc, c_proj\."
    )
    with pytest.raises(ModelError, match=expected):
        build(gpt2, targets=["c_attn", "q_proj"])
    with pytest.raises(ModelError, match="no layer 'lm_head'"):  # its new rows are already trained
        build(gpt2, targets=["lm_head"])


def test_an_unknown_architecture_requires_layer_names(tmp_path: Path) -> None:
    base = adapted.save_base(tmp_path, GRANITE)
    with pytest.raises(ModelError, match=r"peft has no default layers for a 'granite' model; name some\. .*down_proj,"):
        build(base)
    model, tok = build(base, targets=["q_proj"])
    plain = build_model(ModelConfig(name=str(base)), tok, 0)
    assert torch.equal(logits(model), logits(plain))
    assert not PositionLogits(model).direct


def test_an_output_layer_with_a_bias_is_refused(tmp_path: Path) -> None:
    """peft's layer for token rows drops the bias, so predictions would change before the first step."""
    base = adapted.save_base(tmp_path, GPTJConfig(n_embd=16, n_layer=1, n_head=2, rotary_dim=4, n_positions=64))
    assert AutoModelForCausalLM.from_pretrained(base).lm_head.bias is not None
    with pytest.raises(ModelError, match=r"model\.lora: the output layer of GPTJForCausalLM has a bias"):
        build(base)
