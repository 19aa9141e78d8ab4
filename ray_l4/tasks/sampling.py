"""Random subsets of a split, the same for every run with the same ``DataConfig.seed``."""

from __future__ import annotations

import logging
from typing import Literal

import numpy as np
import pyarrow as pa

from ray_l4.errors import DataError
from ray_l4.seeds import derive

log = logging.getLogger(__name__)


def count_of(wanted: int | Literal["paper", "all"], paper: int | None, available: int, source: str) -> int:
    """Return the number of examples to take: as many as ``wanted``, the papers' size, or all.

    Args:
        wanted: a number, ``paper`` or ``all``.
        paper: the papers' size of the split; None for a custom task, where ``paper`` means all. If fewer examples are
            available, all are taken and a warning is logged.
        available: number of examples in the split.
        source: the data, for messages.

    Raises:
        DataError: a number larger than ``available``.
    """
    if wanted == "all" or (wanted == "paper" and paper is None):
        return available
    if wanted == "paper":
        assert paper is not None
        if paper > available:
            log.warning("%s: the papers use %d examples, the data has %d; using all of them.", source, paper, available)
        return min(paper, available)
    if wanted > available:
        raise DataError(
            f"{source}: {wanted} examples requested, but the data has {available}. Request fewer, or 'all'."
        )
    return wanted


def subset(table: pa.Table, count: int, seed: int, task: str, split: str, by_dialogue: bool) -> pa.Table:
    """Return ``count`` examples drawn without replacement, in file order.

    With ``by_dialogue``, whole dialogues are drawn until the count is reached and the last one is cut to its first
    turns, because the joint-goal metric accumulates over the turns of a dialogue (REFERENCE.md#joint-goal).
    """
    if count == table.num_rows:
        return table
    return table.take(pa.array(drawn(table, count, seed, task, split, by_dialogue)))


def drawn(table: pa.Table, count: int, seed: int, task: str, split: str, by_dialogue: bool) -> np.ndarray:
    """Return the rows that ``subset`` takes, in ascending order, (count,) int64."""
    generator = np.random.default_rng(derive(seed, "sample", task, split))
    if by_dialogue:
        return np.sort(_whole_dialogues(table.column("sample_id").to_pylist(), count, generator))
    return np.sort(generator.choice(table.num_rows, size=count, replace=False))


def _whole_dialogues(sample_ids: list[str], count: int, generator: np.random.Generator) -> np.ndarray:
    dialogues: dict[str, list[int]] = {}
    for row, sample_id in enumerate(sample_ids):
        dialogues.setdefault(dialogue_of(sample_id), []).append(row)
    groups = list(dialogues.values())
    drawn = np.concatenate([np.array(groups[index]) for index in generator.permutation(len(groups))])
    return drawn[:count]


def dialogue_of(sample_id: str) -> str:
    """Return the dialogue of a turn id ``<dialogue>_<turn>``; an id of another form is a dialogue of one turn."""
    return sample_id.rpartition("_")[0] or sample_id
