"""Merging adapters into their base model, which gives an ordinary model folder with the same predictions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from ray_l4.errors import ConfigError, ModelError
from ray_l4.learner.inspection import merge_folder
from ray_l4.learner.models import build_model, has_adapters, load_folder
from ray_l4.text.tokenizer import TaskTokenizer
from tests.learner import adapter_fixtures as adapted


@pytest.fixture(scope="module", params=list(adapted.CONFIGS))
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return adapted.save_base(tmp_path_factory.mktemp("base"), adapted.CONFIGS[request.param])


def checkpoint(base: Path, folder: Path) -> tuple[Path, PreTrainedModel, TaskTokenizer]:
    """Write a checkpoint with adapters that change the predictions; returns its folder, model and tokeniser."""
    tok = adapted.tokenizer(base)
    model = adapted.disturb(build_model(adapted.experiment(base).model, tok, 0)).eval()
    return adapted.save_checkpoint(folder, model, tok), model, tok


def every_token(tok: TaskTokenizer) -> torch.Tensor:
    """Return all ids, including new ones, in rows of 16."""
    return torch.arange(tok.size // 16 * 16).view(-1, 16)


@torch.no_grad()
def test_the_merged_model_predicts_the_same_without_peft(base: Path, tmp_path: Path) -> None:
    folder, model, tok = checkpoint(base, tmp_path)
    merge_folder(folder, tmp_path / "merged")
    merged, info = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not any(info.values()), f"missing, unexpected or mismatched: {info}"
    assert type(merged) is type(model) and not has_adapters(merged)
    ids = every_token(tok)
    expected = model(input_ids=ids).logits
    torch.testing.assert_close(merged(input_ids=ids).logits, expected, rtol=1e-5, atol=1e-5)
    plain = AutoModelForCausalLM.from_pretrained(base)
    assert not torch.allclose(plain(input_ids=ids[:3]).logits, expected[:3, :, : plain.config.vocab_size], atol=0.1)


def test_the_merged_folder_is_an_ordinary_model_folder(base: Path, tmp_path: Path) -> None:
    folder, model, tok = checkpoint(base, tmp_path)
    merge_folder(folder, tmp_path / "merged")
    plain, merged = (load_file(f / "model.safetensors") for f in (base, tmp_path / "merged"))
    assert merged.keys() == plain.keys(), "tied weights once, adapters not at all"
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["vocab_size"] == tok.size
    text = " word1 word2 __ans__ word3"
    assert AutoTokenizer.from_pretrained(tmp_path / "merged")(text)["input_ids"] == tok.hf(text)["input_ids"]
    loaded, tokenizer = load_folder(tmp_path / "merged")
    assert (tokenizer.gen, tokenizer.spares) == (tok.gen, tok.spares)
    tied = loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    assert tied == model.config.tie_word_embeddings


def test_merged_weights_follow_the_formula(base: Path, tmp_path: Path) -> None:
    """W + alpha / rank * B A (Hu et al. 2021, section 4.1); GPT-2 stores its matrices transposed."""
    folder, _, _ = checkpoint(base, tmp_path)
    merge_folder(folder, tmp_path / "merged")
    plain, merged = (load_file(f / "model.safetensors") for f in (base, tmp_path / "merged"))
    trained = load_file(folder / "adapter_model.safetensors")
    adapted_layers = [name.removesuffix(".lora_A.weight") for name in trained if name.endswith("lora_A.weight")]
    assert adapted_layers
    for layer in adapted_layers:
        delta = 8 / 4 * trained[f"{layer}.lora_B.weight"] @ trained[f"{layer}.lora_A.weight"]
        name = layer.removeprefix("base_model.model.") + ".weight"
        change = delta.T if "c_attn" in name else delta
        torch.testing.assert_close(merged[name], plain[name] + change)


def test_checkpoint_and_base_are_unchanged(base: Path, tmp_path: Path) -> None:
    folder, _, _ = checkpoint(base, tmp_path)
    before = {path: path.read_bytes() for each in (folder, base) for path in each.iterdir()}
    merge_folder(folder, tmp_path / "merged")
    assert {path: path.read_bytes() for each in (folder, base) for path in each.iterdir()} == before


def test_a_merged_model_can_start_another_run(base: Path, tmp_path: Path) -> None:
    """The new run has new adapters, which have no effect at first."""
    folder, _, _ = checkpoint(base, tmp_path)
    merge_folder(folder, tmp_path / "merged")
    again = build_model(adapted.experiment(tmp_path / "merged").model, adapted.tokenizer(tmp_path / "merged"), 1)
    merged, tok = load_folder(tmp_path / "merged")
    with torch.no_grad():
        ids = every_token(tok)
        assert torch.equal(again.eval()(input_ids=ids).logits, merged.eval()(input_ids=ids).logits)


def test_merging_is_refused_without_adapters_or_into_an_existing_folder(tmp_path: Path) -> None:
    base = adapted.save_base(tmp_path / "base", adapted.CONFIGS["llama, tied"])
    folder, _, _ = checkpoint(base, tmp_path)
    with pytest.raises(ConfigError, match=r"base: exists already"):
        merge_folder(folder, base)
    with pytest.raises(ModelError, match="does not contain a tokeniser of ray-l4"):
        merge_folder(tmp_path / "nowhere", tmp_path / "out")
    merge_folder(folder, tmp_path / "merged")
    with pytest.raises(ModelError, match=r"merged: no adapter_config\.json; expected a checkpoint .*model\.lora"):
        merge_folder(tmp_path / "merged", tmp_path / "out")
    base.rename(tmp_path / "moved")
    with pytest.raises(ModelError, match=r"adapter_config\.json: base_model_name_or_path: there is no folder .*base"):
        merge_folder(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
