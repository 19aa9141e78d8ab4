"""Damaged files of weights are found and named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from ray_l4.errors import RunDirectoryError
from ray_l4.store.records import read_weights
from ray_l4.store.weight_files import damage, damaged_file

WEIGHTS = {"a": torch.arange(6.0).view(2, 3), "b": torch.zeros(0), "c": torch.ones(4, dtype=torch.bfloat16)}
WHOLE = save(WEIGHTS, metadata={"format": "pt"})


@given(st.integers(0, len(WHOLE) - 1))
def test_a_file_cut_off_anywhere_is_damaged(tmp_path_factory: pytest.TempPathFactory, length: int) -> None:
    path = tmp_path_factory.getbasetemp() / "cut.safetensors"
    path.write_bytes(WHOLE[:length])
    assert "is damaged" in (damage(path) or "")
    path.write_bytes(WHOLE)
    assert damage(path) is None


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs", b"\x00" * 64, b"<html>" * 40, WHOLE + b"\x00"])
def test_what_is_no_safetensors_file_is_damaged(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    assert damage(tmp_path / "model.safetensors") is not None


def test_the_damaged_one_of_several_files_is_named(tmp_path: Path) -> None:
    for number in range(3):
        save_file(WEIGHTS, tmp_path / f"model-{number}.safetensors")
    assert damaged_file(tmp_path) is None
    (tmp_path / "model-1.safetensors").write_bytes(WHOLE[:50])
    assert (damaged_file(tmp_path) or "").startswith(f"{tmp_path}/model-1.safetensors is damaged")


def test_files_of_pytorch_are_looked_at_too(tmp_path: Path) -> None:
    torch.save(WEIGHTS, tmp_path / "pytorch_model.bin")
    assert damaged_file(tmp_path) is None
    (tmp_path / "pytorch_model.bin").write_bytes((tmp_path / "pytorch_model.bin").read_bytes()[:200])
    assert "pytorch_model.bin is damaged" in (damaged_file(tmp_path) or "")


@pytest.mark.parametrize("name", ["model.safetensors", "adapter_model.safetensors"])
def test_a_resume_names_the_damaged_checkpoint(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(WHOLE)
    assert np.array_equal(read_weights(tmp_path), np.frombuffer(WHOLE, np.uint8))
    (tmp_path / name).write_bytes(WHOLE[:-7])
    with pytest.raises(RunDirectoryError, match=rf"{tmp_path}/{name} is damaged: .* Restore it"):
        read_weights(tmp_path)
