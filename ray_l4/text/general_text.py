"""The general text as tokens: windows, each of which a model predicts by itself (METHODS.md#general-text)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from ray_l4.config.experiment import FEWEST_GENERAL
from ray_l4.errors import DataError
from ray_l4.tasks.general_file import read_general_text, refuse_short

if TYPE_CHECKING:
    from ray_l4.text.text_ids import TextIds

LONGEST_WINDOW = 512
"""Most tokens of a window."""


@dataclass(frozen=True)
class GeneralText:
    """A general text, tokenised and cut in windows. The first token of a window is given, all others are predicted."""

    name: str
    """Name of its file."""
    windows: tuple[np.ndarray, ...]
    """Token ids, int32; at least two in each window."""

    @property
    def tokens(self) -> int:
        """The number of tokens in all windows."""
        return sum(map(len, self.windows))

    @property
    def predicted(self) -> int:
        """The number of tokens that are predicted."""
        return self.tokens - len(self.windows)

    @cached_property
    def digest(self) -> str:
        """What tells this text from another one: a digest of its windows."""
        found = hashlib.sha256()
        for ids in self.windows:
            found.update(np.int64(len(ids)).tobytes() + ids.tobytes())
        return found.hexdigest()[:16]


KEPT = pa.schema([pa.field("name", pa.string(), nullable=False), pa.field("ids", pa.list_(pa.int32()), nullable=False)])
"""A general text as a run directory keeps it: its name and the tokens of each window."""


def kept_table(text: GeneralText) -> pa.Table:
    """Return a general text as a ``KEPT`` table."""
    columns = {"name": [text.name] * len(text.windows), "ids": [ids.tolist() for ids in text.windows]}
    return pa.table(columns, schema=KEPT)


def from_table(table: pa.Table) -> GeneralText:
    """Invert ``kept_table``."""
    rows = table.to_pylist()
    return GeneralText(rows[0]["name"], tuple(np.asarray(row["ids"], np.int32) for row in rows))


def general_text(path: Path, most_tokens: int, tokenizer: TextIds, longest: int) -> GeneralText:
    """Read a general text and tokenise its beginning, as plain text: without a chat template or special tokens.

    Args:
        most_tokens: tokens that are used at most.
        longest: the longest sequence of the run, in tokens, at least 2.

    Raises:
        DataError: as ``read_general_text``; the text has too few tokens, or the name of a special token in it cannot be
            encoded as text.
    """
    text = read_general_text(path, most_tokens)
    try:
        ids = tokenizer.encode(text)[:most_tokens]
    except DataError as error:
        raise DataError(f"evaluation.general: {path}: {error}") from error
    if len(ids) < FEWEST_GENERAL:
        refuse_short(path, f"{len(ids)} tokens")
    return GeneralText(path.name, windows_of(ids, min(longest, LONGEST_WINDOW)))


def windows_of(ids: Sequence[int], length: int) -> tuple[np.ndarray, ...]:
    """Cut ``ids`` in windows of ``length``, at least 2. A last token that would be alone is left out."""
    cut = (np.asarray(ids[first : first + length], np.int32) for first in range(0, len(ids), length))
    return tuple(window for window in cut if len(window) > 1)
