"""Checkpoints are ordinary Hugging Face folders without any loss of information."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedModel

from ray_l4.learner.models import build_model, from_description, load_bytes, load_folder, to_bytes
from ray_l4.store.records import read_weights, write_checkpoint
from ray_l4.text.tokenizer import TaskTokenizer
from tests.learner import learner_fixtures as small


@pytest.fixture(scope="module")
def tok() -> TaskTokenizer:
    return small.tokenizer()


@pytest.fixture(scope="module", params=["gpt2, tied", "llama, untied", "llama, tied"])
def model(request: pytest.FixtureRequest, tok: TaskTokenizer) -> PreTrainedModel:
    if request.param == "gpt2, tied":
        return build_model(small.experiment().model, tok, 3).eval()
    config = LlamaConfig(
        vocab_size=tok.size,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=request.param == "llama, tied",
    )
    torch.manual_seed(3)
    return from_description(config.to_dict()).eval()


@pytest.fixture
def folder(model: PreTrainedModel, tok: TaskTokenizer, tmp_path: Path) -> Path:
    (tmp_path / "tokenizer").mkdir()
    tok.save(tmp_path / "tokenizer")
    write_checkpoint(tmp_path / "c", to_bytes(model), model.config.to_dict(), tmp_path / "tokenizer")
    return tmp_path / "c"


def test_transformers_loads_it_without_warnings(
    folder: Path, model: PreTrainedModel, tok: TaskTokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    library = logging.getLogger("transformers")  # does not propagate to pytest's handler
    library.addHandler(caplog.handler)
    loaded, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    library.removeHandler(caplog.handler)
    assert not any(info.values()), f"missing, unexpected or mismatched: {info}"
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert type(loaded) is type(model)
    assert loaded.config.tie_word_embeddings == model.config.tie_word_embeddings
    tied = loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    assert tied == model.config.tie_word_embeddings
    ids = torch.tensor([tok.encode("word1 word2 word3")])
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=ids).logits, model(input_ids=ids).logits)


def test_it_has_the_tokeniser_of_the_run(folder: Path, tok: TaskTokenizer) -> None:
    loaded = AutoTokenizer.from_pretrained(folder)
    text = " word1 word2 __ans__ word3"
    assert loaded(text, add_special_tokens=False)["input_ids"] == tok.hf(text, add_special_tokens=False)["input_ids"]
    assert tok.ans in loaded(text)["input_ids"]
    assert (loaded.eos_token_id, loaded.pad_token_id) == (tok.eos, tok.pad)


def test_load_folder_returns_the_model_and_the_task_tokens(
    folder: Path, model: PreTrainedModel, tok: TaskTokenizer
) -> None:
    loaded, tokenizer = load_folder(folder)
    assert (tokenizer.gen, tokenizer.spares, tokenizer.size) == (tok.gen, tok.spares, tok.size)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_weights_are_read_back_byte_for_byte(folder: Path, model: PreTrainedModel) -> None:
    weights = read_weights(folder)
    assert weights.tobytes() == to_bytes(model).tobytes()
    other = from_description(json.loads((folder / "config.json").read_text()))
    load_bytes(other, weights)
    assert all(torch.equal(other.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


def test_tied_weights_are_stored_once(folder: Path, model: PreTrainedModel) -> None:
    stored = (folder / "model.safetensors").stat().st_size
    parameters = sum(p.numel() for p in model.parameters()) * 4  # counts a shared tensor once
    assert parameters < stored < parameters + 4 * model.get_input_embeddings().weight.numel()


def test_a_checkpoint_replaces_an_older_one(folder: Path, model: PreTrainedModel, tok: TaskTokenizer) -> None:
    (folder / "stale").touch()
    changed = to_bytes(model).copy()
    changed[-1] ^= 1
    write_checkpoint(folder, changed, model.config.to_dict(), folder.parent / "tokenizer")
    assert not (folder / "stale").exists()
    assert read_weights(folder)[-1] == changed[-1]
    assert sorted(path.name for path in folder.parent.iterdir()) == ["c", "tokenizer"]
