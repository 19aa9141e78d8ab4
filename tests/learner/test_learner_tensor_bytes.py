"""Tensors as bytes: what the library safetensors reads from them is what was written."""

from __future__ import annotations

import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from ray_l4.learner.tensor_bytes import _NAMES, tensor_bytes

shapes = st.lists(st.integers(0, 4), max_size=3)
tensors = st.dictionaries(st.text(min_size=1, max_size=5), st.tuples(shapes, st.sampled_from(list(_NAMES))), max_size=6)


@given(tensors)
def test_the_library_reads_what_was_written(drawn: dict[str, tuple[list[int], torch.dtype]]) -> None:
    written = {name: (torch.randn(shape) * 50).to(dtype) for name, (shape, dtype) in drawn.items()}
    written.pop("__metadata__", None)
    read = safetensors.torch.load(tensor_bytes(written).tobytes())
    assert read.keys() == written.keys()
    for name, tensor in written.items():
        assert read[name].dtype == tensor.dtype and read[name].shape == tensor.shape
        assert torch.equal(read[name], tensor)


def test_later_changes_of_a_tensor_do_not_change_its_bytes() -> None:
    tensor = torch.zeros(3)
    data = tensor_bytes({"a": tensor})
    tensor.fill_(7)
    assert safetensors.torch.load(data.tobytes())["a"].tolist() == [0, 0, 0]
