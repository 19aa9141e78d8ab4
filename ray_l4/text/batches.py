"""Tensors of one training step, built from rows of token ids (REFERENCE.md#assembly, #lamol-loss)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from ray_l4.text.heads import Head
from ray_l4.text.tokens import SpecialIds

_COLUMNS = ["ids", "prompt_length", "gen", "origin"]
"""What a batch is built from."""


@dataclass(frozen=True)
class HeadPositions:
    """The N positions of one head that have a target, those of current (real) examples first."""

    positions_N: Tensor
    """int64 indices into the flattened (rows x time) grid of the batch."""
    targets_N: Tensor
    """int64 ids that the logits at the positions are scored against."""
    weights_N: Tensor
    """float32 weights in the mean over tokens (REFERENCE.md#lamol-loss)."""
    num_current: int
    """Number of positions of current examples, which come first."""
    num_distilled: int
    """``[:num_distilled]`` bear distillation."""

    def to(self, device: torch.device) -> HeadPositions:
        """Return a copy on another device, which is asked not to wait for what that does now."""
        own = (self.positions_N, self.targets_N, self.weights_N)
        positions_N, targets_N, weights_N = (tensor.to(device, non_blocking=True) for tensor in own)
        return replace(self, positions_N=positions_N, targets_N=targets_N, weights_N=weights_N)


@dataclass(frozen=True)
class Batch:
    """Input of one step: all QA sequences in the order of the indices, then all LM sequences, then all own answers.

    Stacking computes all passes of REFERENCE.md#assembly in one forward. They stay independent: every row has its own
    dropout, and causal attention with padding on the right makes each row independent of the others.
    """

    input_ids_RT: Tensor
    """int64, (rows, length of the longest sequence)."""
    lengths: Sequence[int]
    """The length of each row without padding."""
    heads: Mapping[Head, HeadPositions]
    num_examples: int
    num_current_examples: int
    num_tokens: int
    """Number of positions with a loss, summed over the heads."""

    def to(self, device: torch.device) -> Batch:
        """Return a copy on another device, which is asked not to wait for what that does now."""
        heads = {head: positions.to(device) for head, positions in self.heads.items()}
        return replace(self, input_ids_RT=self.input_ids_RT.to(device, non_blocking=True), heads=heads)


@dataclass(frozen=True)
class _Sequence:
    """Input ids of one row, and the first position whose logits are scored; so are all later ones."""

    ids: np.ndarray
    first: int
    end: int

    def targets(self) -> np.ndarray:
        """Return the ids that the scored positions predict: the next id each, ``end`` at the end."""
        return np.append(self.ids[1:], np.int32(self.end))[self.first :]


def build_batch(
    tokens: pa.Table,
    indices: np.ndarray,
    heads: Sequence[Head],
    special: SpecialIds,
    ans_weight: float,
    answered: pa.Table | None = None,
) -> Batch:
    """Build the batch of the rows ``indices`` of ``tokens``.

    Args:
        tokens: a ``TOKENS`` table, ideally in one chunk (``tokens.concatenated``).
        indices: (batch,) row numbers.
        heads: ``("qa",)``, or ``("qa", "lm")`` for LAMOL's loss.
        special: ids of PAD, EOS, ANS and of the end of an LM sequence.
        ans_weight: weight of ANS as a target; every other target has weight 1.
        answered: for the head ``own``, the current examples among these rows, in their order, with answers that the
            student gave itself.
    """
    rows = tokens.select(_COLUMNS).take(pa.array(indices))
    current = pc.equal(rows["origin"], "real").to_numpy()
    by_head: dict[Head, list[_Sequence]] = {head: _sequences(head, rows, special) for head in heads}
    if answered is not None:
        by_head["own"] = _own_answers(answered, current, special)
    heads = list(by_head)
    sequences = [sequence for head in heads for sequence in by_head[head]]
    width = max(len(sequence.ids) for sequence in sequences)
    input_ids_RT, _ = _padded([sequence.ids for sequence in sequences], special.pad, width)
    scored = {
        head: _positions(by_head[head], k * len(indices), width, current, special, ans_weight)
        for k, head in enumerate(heads)
    }
    return Batch(
        input_ids_RT=input_ids_RT,
        lengths=[len(sequence.ids) for sequence in sequences],
        heads=scored,
        num_examples=len(indices),
        num_current_examples=int(current.sum()),
        num_tokens=sum(len(positions.targets_N) for positions in scored.values()),
    )


def _sequences(head: Head, rows: pa.Table, special: SpecialIds) -> list[_Sequence]:
    """Return X of the head for every row.

    QA is scored from ANS on, LM from GEN on (REFERENCE.md#assembly), or from the last id of ``lm_start``.
    """
    lists = rows["ids"].combine_chunks()
    starts = lists.offsets.to_numpy()
    ids = np.split(lists.values.to_numpy(), starts[1:-1])
    if head == "qa":
        lengths = rows["prompt_length"].to_pylist()
        return [_Sequence(row, first - 1, special.eos) for row, first in zip(ids, lengths, strict=True)]
    gens, (*last_inputs, end) = rows["gen"].to_numpy(), special.lm_end
    given, tail = len(special.lm_start), np.asarray(last_inputs, dtype=np.int32)
    return [_Sequence(np.concatenate([[gen], row, tail]), given, end) for gen, row in zip(gens, ids, strict=True)]


def _own_answers(answered: pa.Table, current: np.ndarray, special: SpecialIds) -> list[_Sequence]:
    """Return the QA sequence of every row with the student's own answer; of a replayed one a token without a loss.

    Every head has as many rows as the batch has examples (``learner.micro_batches.select``).
    """
    own = iter(_sequences("qa", answered, special))
    nothing = _Sequence(np.asarray([special.pad], dtype=np.int32), 1, special.eos)
    return [next(own) if is_current else nothing for is_current in current]


def _positions(
    sequences: Sequence[_Sequence], row: int, width: int, current: np.ndarray, special: SpecialIds, ans_weight: float
) -> HeadPositions:
    """Return the scored positions of a head whose sequences start at ``row`` of the grid, current examples first."""
    order = np.argsort(~current, kind="stable")
    positions = [(row + i) * width + np.arange(sequences[i].first, len(sequences[i].ids)) for i in order]
    targets_N = np.concatenate([sequences[i].targets() for i in order]).astype(np.int64)
    weights_N = np.where(targets_N == special.ans, ans_weight, 1.0).astype(np.float32)
    num_current = sum(len(span) for span in positions[: int(current.sum())])
    return HeadPositions(
        positions_N=torch.from_numpy(np.concatenate(positions)),
        targets_N=torch.from_numpy(targets_N),
        weights_N=torch.from_numpy(weights_N),
        num_current=num_current,
        num_distilled=num_current,
    )


def _padded(rows: Sequence[np.ndarray], pad: int, width: int) -> tuple[Tensor, Tensor]:
    """Pad rows on the right. Returns ids and a mask that is 0 on the padding, both (rows, width) int64."""
    lengths = np.asarray([len(row) for row in rows])
    mask = np.arange(width) < lengths[:, None]
    ids = np.full(mask.shape, pad, dtype=np.int64)
    ids[mask] = np.concatenate(rows)
    return torch.from_numpy(ids), torch.from_numpy(mask.astype(np.int64))
