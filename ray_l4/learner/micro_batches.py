"""A step's examples cut to what one rank runs at a time, and predictions of the pieces put together again.

Pieces are cut from the whole batch, whose labels are weighted already, so that what they give is summed, not averaged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ray_l4.learner.predictions import Predictions
from ray_l4.text.batches import Batch, HeadPositions
from ray_l4.text.tokens import Head


@dataclass(frozen=True)
class Piece:
    """Examples of a step that go through the model together."""

    batch: Batch
    distilled: Mapping[Head, slice]
    """Of each head, which rows of a teacher's targets are about this piece: about its first so many positions."""
    first: int | None = None
    """Which of the step's examples it begins with; None for all of them in one piece."""

    def to(self, device: torch.device) -> Piece:
        """The same on another device."""
        return replace(self, batch=self.batch.to(device))


def cut(
    batch: Batch, rank: int = 0, num_ranks: int = 1, micro_batch: int | None = None, *, distil_all: bool = False
) -> list[Piece]:
    """What ``rank`` runs of a step: at most ``micro_batch`` examples at a time, or all of its share at once.

    Every rank has equally many pieces, because sharded weights come together for all ranks at once. One that has
    fewer examples gets blank pieces, from which nothing is learned. A teacher speaks of the distilled positions of
    the rank's pieces, one after the other. ``distil_all``: replayed examples bear distillation too.
    """
    spans = piece_spans(batch.num_samples, rank, num_ranks, micro_batch)
    whole = spans == [range(batch.num_samples)]
    pieces, stops = [], dict.fromkeys(batch.heads, 0)
    for span in spans:
        own = batch if whole else select(batch, span)
        starts = stops
        stops = {
            head: starts[head] + (len(positions.targets_N) if distil_all else positions.num_current)
            for head, positions in own.heads.items()
        }
        distilled = {head: slice(starts[head], stops[head]) for head in own.heads}
        pieces.append(Piece(own, distilled, None if whole else span.start))
    return pieces


def piece_spans(num_examples: int, rank: int, num_ranks: int, micro_batch: int | None) -> list[range]:
    """The examples of each piece of a rank: contiguous shares, whose sizes differ by 1 at most, the larger ones first.

    Each rank has the same number of pieces, the last of which may be empty.
    """
    least, rest = divmod(num_examples, num_ranks)
    start = rank * least + min(rank, rest)
    stop = start + least + (rank < rest)
    longest = least + (rest > 0)
    size = min(micro_batch or longest, longest)
    return [range(min(start + at, stop), min(start + at + size, stop)) for at in range(0, longest, size)]


def select(batch: Batch, examples: range) -> Batch:
    """Some examples of a batch, with the weights that their labels have in it and no more padding than they need.

    No example gives a batch that bears no loss: a single token that is scored nowhere.
    """
    width = batch.input_ids_RT.shape[1]
    blocks = range(0, len(batch.input_ids_RT), batch.num_samples)
    rows_S = torch.cat([block + torch.arange(examples.start, examples.stop) for block in blocks])
    heads = {head: _within(positions, rows_S, width) for head, positions in batch.heads.items()}
    # The last token of every sequence is scored, so that only padding lies behind what is scored.
    columns = [int((positions.positions_N % width).max()) for positions in heads.values() if len(positions.positions_N)]
    length = max(columns, default=0) + 1
    place_R = torch.zeros(len(batch.input_ids_RT), dtype=torch.int64)
    place_R[rows_S] = torch.arange(len(rows_S))
    scored = {
        head: replace(own, positions_N=place_R[own.positions_N // width] * length + own.positions_N % width)
        for head, own in heads.items()
    }
    current = next(iter(heads.values()))
    return Batch(
        input_ids_RT=batch.input_ids_RT[rows_S if examples else slice(1), :length],
        heads=scored,
        num_samples=len(examples),
        num_current_samples=len((current.positions_N[: current.num_current] // width).unique()),
        num_tokens=sum(len(own.targets_N) for own in scored.values()),
    )


def _within(positions: HeadPositions, rows_S: Tensor, width: int) -> HeadPositions:
    """Those of the positions that lie in the rows, in the order they have."""
    kept_N = torch.isin(positions.positions_N // width, rows_S)
    return HeadPositions(
        positions_N=positions.positions_N[kept_N],
        targets_N=positions.targets_N[kept_N],
        weights_N=positions.weights_N[kept_N],
        num_current=int(kept_N[: positions.num_current].sum()),
    )


def joined(parts: Sequence[Predictions]) -> Predictions:
    """Predictions of all pieces, in their order."""
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    return Predictions(
        {head: torch.cat([part.logits[head] for part in parts]) for head in first.logits},
        {head: torch.cat([part.hidden[head] for part in parts]) for head in first.hidden},
        first.output,
    )
