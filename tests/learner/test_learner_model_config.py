"""Model configurations and length limits, read without PyTorch or weights."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from transformers import PreTrainedConfig

from ray_l4.errors import ModelError, first_line
from ray_l4.learner.model_config import max_length, pretrained_config
from tests.learner.architectures import GPT2, LLAMA


def test_importing_the_module_loads_neither_pytorch_nor_transformers() -> None:
    program = "import sys, ray_l4.learner.model_config; print({'torch', 'transformers', 'peft'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize("config", [GPT2, LLAMA], ids=["n_positions", "max_position_embeddings"])
def test_the_longest_sequence_is_limited_by_the_model(config: PreTrainedConfig) -> None:
    assert max_length(config, None) == 32
    assert max_length(config, 20) == 20
    assert max_length(config, 32) == 32
    with pytest.raises(ModelError, match=r"max_length: 33 tokens were requested, but the model has 32 positions"):
        max_length(config, 33)


def test_a_model_without_a_limit_gets_a_default() -> None:
    assert max_length(object(), None) == 1024
    assert max_length(object(), 5000) == 5000


def test_a_configuration_is_read_without_weights(tmp_path: Path) -> None:
    GPT2.save_pretrained(tmp_path)
    assert pretrained_config(str(tmp_path)).n_positions == 32
    with pytest.raises(ModelError, match=r"model\.name: there is no folder /.*missing"):
        pretrained_config(str(tmp_path / "missing"))


def test_first_line_of_an_error() -> None:
    assert first_line(ValueError("\n one\ntwo")) == "one"
    assert first_line(ValueError()) == "ValueError"
