"""Finding a model: a folder typed wrong is said to be missing, where it was looked for, and nobody asks the hub."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest

from ray_l4.config.model import ModelConfig
from ray_l4.errors import ModelError
from ray_l4.learner.model_config import pretrained_config
from ray_l4.learner.models import build_model
from ray_l4.learner.pretrained import load_pretrained
from ray_l4.text import model_location
from ray_l4.text.base_tokenizer import load_base
from ray_l4.text.model_location import located
from tests.learner import learner_fixtures as small


@pytest.fixture(autouse=True)
def _ask_again() -> Iterator[None]:
    """Forget whether the hub answered."""
    model_location._hub_is_reachable.cache_clear()
    yield
    model_location._hub_is_reachable.cache_clear()


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Pretend that the hub may be asked; returns the addresses that were tried, none of which answers."""
    tried: list[object] = []

    def refuse(address: object, *arguments: object) -> socket.socket:
        tried.append(address)
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "create_connection", refuse)
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    return tried


def test_a_folder_needs_no_hub(tmp_path: Path, connections: list[object]) -> None:
    assert located(str(tmp_path)) == {"trust_remote_code": False}
    assert not connections


@pytest.mark.parametrize("typed", ["./modles/gpt", "modles/small/gpt", "{}/modles/gpt", "~/modles/gpt", "modles/gpt/"])
def test_what_can_only_be_a_folder_is_looked_for_in_one_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, connections: list[object], typed: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ModelError) as caught:
        located(typed.format(tmp_path))
    message = str(caught.value)
    assert message.startswith(f"model.name: there is no folder {tmp_path}/modles/")
    assert "\n" not in message
    assert not connections


def test_a_name_for_the_hub_is_tried_there_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, connections: list[object]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "gpt2-small").mkdir(parents=True)
    for _ in range(2):
        with pytest.raises(ModelError, match="cannot be reached") as caught:
            located("models/gpt2-smal")
    message = str(caught.value)
    assert f"looked for {tmp_path}/models/gpt2-smal" in message
    assert "Did you mean models/gpt2-small?" in message
    assert "\n" not in message
    assert len(connections) == 1


def test_a_cached_model_is_read_without_the_hub(monkeypatch: pytest.MonkeyPatch, connections: list[object]) -> None:
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda name, file: f"/cache/{file}")
    assert located("some/model") == {"trust_remote_code": False, "local_files_only": True}
    assert len(connections) == 1


def test_a_hub_that_answers_is_asked_by_the_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = socket.socketpair()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "create_connection", lambda *arguments: one)
    assert located("some/model") == {"trust_remote_code": False}
    other.close()


def test_the_home_of_an_unknown_user_is_a_folder_that_is_not_there(connections: list[object]) -> None:
    with pytest.raises(ModelError, match=r"no folder .*~nosuchuser/model"):
        located("~nosuchuser/model")
    assert not connections


def test_a_file_is_not_a_model(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ModelError, match="is a file; expected the folder"):
        located(str(tmp_path / "model.safetensors"))


def test_everything_that_loads_a_model_looks_for_it_first(tmp_path: Path) -> None:
    name = str(tmp_path / "nothing")
    for load in (
        lambda: load_base(name),
        lambda: pretrained_config(name),
        lambda: build_model(ModelConfig(name=name), small.tokenizer(), 0),
    ):
        with pytest.raises(ModelError, match=f"model.name: there is no folder {name}"):
            load()


CODE = """
from pathlib import Path
Path({ran!r}).touch()
"""


@pytest.mark.slow
@pytest.mark.parametrize("load", [pretrained_config, lambda name: load_pretrained(name, "MODEL"), load_base])
def test_code_of_a_model_is_refused_without_a_question(
    tmp_path: Path, load: Callable[[str], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asks"))
    classes = {
        "AutoConfig": "own.OwnConfig",
        "AutoModelForCausalLM": "own.OwnModel",
        "AutoTokenizer": [None, "own.T"],
    }
    (tmp_path / "own.py").write_text(CODE.format(ran=str(tmp_path / "ran")))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": classes}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Own", "auto_map": classes}))
    with pytest.raises(ModelError, match=r"comes with Python code of its own.*model\.trust_custom_code: true"):
        load(str(tmp_path))
    assert not (tmp_path / "ran").exists()
