"""Tensors in safetensors format, copied once: the library copies them three times, while training waits."""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
import torch

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Type of values -> its name in a safetensors header."""
_LENGTH = 8
"""Bytes of the header's length, of which it is also a multiple, so that what follows is aligned."""


def tensor_bytes(tensors: Mapping[str, torch.Tensor]) -> np.ndarray:
    """Return contiguous tensors in main memory in safetensors format (uint8)."""
    ordered = sorted(tensors.items(), key=lambda item: -item[1].element_size())  # so that each is aligned
    header, end = {}, 0
    for name, tensor in ordered:
        offsets = [end, end := end + tensor.nbytes]
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % _LENGTH)
    data = np.empty(_LENGTH + len(text) + end, dtype=np.uint8)
    start = _LENGTH + len(text)
    data[:start] = np.frombuffer(len(text).to_bytes(_LENGTH, "little") + text, dtype=np.uint8)
    for _, tensor in ordered:
        data[start : (start := start + tensor.nbytes)] = tensor.reshape(-1).view(torch.uint8).numpy()
    return data
