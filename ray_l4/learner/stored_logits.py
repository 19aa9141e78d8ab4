"""Logits recorded for the examples of a reservoir, in the reservoir's order."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import functional

from ray_l4.errors import ModelError
from ray_l4.learner.tensor_bytes import tensor_bytes
from ray_l4.seeds import derive
from ray_l4.text.stored import kept_rows

_ARRAYS = {"keys": torch.float64, "digests": torch.int64, "sizes": torch.int64}
_TENSORS = {"ids": torch.int32, "values": torch.float32}
"""Names of the tensors of the serialised form -> their types."""


@dataclass(frozen=True, eq=False)
class StoredLogits:
    """Recorded logits of the M examples of a reservoir, in main memory; by default of none.

    Example i is row i of the reservoir (``text.stored.reservoir_of``): the keys that decide which examples stay are
    recorded too, so that the two lose the same rows.
    """

    keys_M: np.ndarray = field(default_factory=lambda: np.empty(0))
    """float64 keys of the examples."""
    digests_M: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    """int64 digests of the examples (``digests``)."""
    sizes_M: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    """int64 numbers of the examples' answer tokens, EOS included; N in all."""
    ids_NK: Tensor = field(default_factory=lambda: torch.empty((0, 0), dtype=torch.int32))
    """int32 ids of the entries that were recorded at each answer token."""
    values_NK: Tensor = field(default_factory=lambda: torch.empty((0, 0)))
    """float32 logits of these entries; NaN where a token has fewer of them than others."""

    def joined(self, later: StoredLogits, capacity: int | None) -> StoredLogits:
        """Return what is recorded of a reservoir of ``capacity`` after the examples of ``later`` have come."""
        width = max(self.ids_NK.shape[1], later.ids_NK.shape[1])  # differs if all entries of a growing vocabulary count
        parts = (self, later)
        return StoredLogits(
            np.concatenate([part.keys_M for part in parts]),
            np.concatenate([part.digests_M for part in parts]),
            np.concatenate([part.sizes_M for part in parts]),
            torch.cat([_widened(part.ids_NK, width, 0) for part in parts]),
            torch.cat([_widened(part.values_NK, width, float("nan")) for part in parts]),
        )._only(capacity)

    def of(self, memory: pa.Table, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return ids and values at the answer tokens of some rows of ``memory``, one example after the other.

        Raises ModelError if the memory does not hold the examples whose logits were recorded.
        """
        drawn = memory.select(["task", "sample_id"]).take(pa.array(rows))
        if memory.num_rows != len(self.keys_M) or not np.array_equal(digests(drawn), self.digests_M[rows]):
            raise ModelError(
                f"logits were recorded of {len(self.keys_M)} examples, which are not the {memory.num_rows} stored "
                "ones; the guard's state is that of another run or stage"
            )
        places = torch.from_numpy(self._places(rows))
        return self.ids_NK[places], self.values_NK[places]

    def to_bytes(self) -> np.ndarray:
        """Serialise in safetensors format, as a flat uint8 array."""
        arrays = {"keys": self.keys_M, "digests": self.digests_M, "sizes": self.sizes_M}
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        return tensor_bytes(tensors | {"ids": self.ids_NK, "values": self.values_NK})

    @classmethod
    def from_bytes(cls, data: np.ndarray) -> StoredLogits:
        """Restore what ``to_bytes`` returned. Raises ModelError if the bytes are damaged."""
        try:
            found = safetensors.torch.load(data.tobytes())
        except SafetensorError as error:
            raise ModelError(f"recorded logits of {data.nbytes} bytes are damaged: {error}") from error
        types = {name: tensor.dtype for name, tensor in found.items()}
        if types != _ARRAYS | _TENSORS:
            names = ", ".join(sorted(types)) or "nothing"
            raise ModelError(
                f"recorded logits are damaged: they hold {names}; expected {', '.join(_ARRAYS | _TENSORS)}"
            )
        keys_M, digests_M, sizes_M = (found[name].numpy() for name in _ARRAYS)
        return cls(keys_M, digests_M, sizes_M, found["ids"], found["values"])

    def _only(self, capacity: int | None) -> StoredLogits:
        """Return the examples that a reservoir of ``capacity`` keeps."""
        if capacity is None or capacity >= len(self.keys_M):
            return self
        rows = kept_rows(self.keys_M, capacity)
        places = torch.from_numpy(self._places(rows))
        return StoredLogits(
            self.keys_M[rows], self.digests_M[rows], self.sizes_M[rows], self.ids_NK[places], self.values_NK[places]
        )

    def _places(self, rows: np.ndarray) -> np.ndarray:
        """Return the positions of the answer tokens of some examples, one example after the other."""
        ends = np.cumsum(self.sizes_M)
        return np.concatenate([np.arange(ends[row] - self.sizes_M[row], ends[row]) for row in rows])


def digests(examples: pa.Table) -> np.ndarray:
    """Return an int64 digest of task and name of every example of a ``TOKENS`` table."""
    names = zip(examples["task"].to_pylist(), examples["sample_id"].to_pylist(), strict=True)
    return np.asarray([derive(0, "example", task, name) for task, name in names], dtype=np.int64)


def _widened(entries_NK: Tensor, width: int, value: float) -> Tensor:
    """Return the entries with further columns of ``value``, ``width`` columns in all."""
    return functional.pad(entries_NK, (0, width - entries_NK.shape[1]), value=value)
