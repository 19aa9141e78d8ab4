"""Splitting a step's batch into micro-batches, and concatenating their predictions.

Labels are weighted over the whole batch before it is split, so the losses of micro-batches are summed, not averaged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ray_l4.learner.predictions import ComputedLogits, Predictions
from ray_l4.text.batches import Batch, HeadPositions
from ray_l4.text.heads import Head


@dataclass(frozen=True)
class MicroBatch:
    """Examples of a step that go through the model at once."""

    batch: Batch
    distilled: Mapping[Head, slice]
    """Head -> the rows of a teacher's targets that belong to this micro-batch, one for each of its first positions."""
    first: int | None = None
    """Index of its first example in the step's batch; None if it holds the whole batch."""

    def num_distilled(self, head: Head) -> int:
        """Return the number of the head's positions that bear distillation."""
        rows = self.distilled[head]
        return int(rows.stop - rows.start)

    def to(self, device: torch.device) -> MicroBatch:
        """Copy to ``device``."""
        return replace(self, batch=self.batch.to(device))


def split(batch: Batch, rank: int = 0, num_ranks: int = 1, size: int | None = None) -> list[MicroBatch]:
    """Split ``rank``'s share of a batch into micro-batches of at most ``size`` examples (None: a single one).

    All ranks get the same number of micro-batches, because sharded weights are gathered on all ranks together; a rank
    with fewer examples gets empty ones, which bear no loss. A teacher's targets for a rank are in the order of its
    micro-batches.
    """
    spans = micro_batch_spans(batch.num_examples, rank, num_ranks, size)
    whole = spans == [range(batch.num_examples)]
    parts, stops = [], dict.fromkeys(batch.heads, 0)
    for span in spans:
        own = batch if whole else select(batch, span)
        starts = stops
        stops = {head: starts[head] + positions.num_distilled for head, positions in own.heads.items()}
        distilled = {head: slice(starts[head], stops[head]) for head in own.heads}
        parts.append(MicroBatch(own, distilled, None if whole else span.start))
    return parts


def micro_batch_spans(num_examples: int, rank: int, num_ranks: int, size: int | None) -> list[range]:
    """Return the examples of each micro-batch of a rank.

    Ranks have contiguous shares whose sizes differ by at most 1, larger ones first, and the same number of
    micro-batches, of which the last may be empty.
    """
    least, rest = divmod(num_examples, num_ranks)
    start = rank * least + min(rank, rest)
    stop = start + least + (rank < rest)
    longest = least + (rest > 0)
    step = min(size or longest, longest)
    return [range(min(start + at, stop), min(start + at + step, stop)) for at in range(0, longest, step)]


def select(batch: Batch, examples: range) -> Batch:
    """Select consecutive examples of a batch, with the weights of their labels and no more padding than needed.

    An empty selection gives a batch of a single token that bears no loss.
    """
    width = batch.input_ids_RT.shape[1]
    blocks = range(0, len(batch.input_ids_RT), batch.num_examples)
    rows_S = torch.cat([block + torch.arange(examples.start, examples.stop) for block in blocks])
    heads = {head: _within(positions, rows_S, width) for head, positions in batch.heads.items()}
    # Every sequence bears a loss up to its last token, so only padding follows the last such position.
    columns = [int((positions.positions_N % width).max()) for positions in heads.values() if len(positions.positions_N)]
    length = max(columns, default=0) + 1
    new_row_R = torch.zeros(len(batch.input_ids_RT), dtype=torch.int64)
    new_row_R[rows_S] = torch.arange(len(rows_S))
    scored = {
        head: replace(own, positions_N=new_row_R[own.positions_N // width] * length + own.positions_N % width)
        for head, own in heads.items()
    }
    current = next(iter(heads.values()))
    return Batch(
        input_ids_RT=batch.input_ids_RT[rows_S if examples else slice(1), :length],
        lengths=[batch.lengths[row] for row in rows_S.tolist()] or [1],
        heads=scored,
        num_examples=len(examples),
        num_current_examples=len((current.positions_N[: current.num_current] // width).unique()),
        num_tokens=sum(len(own.targets_N) for own in scored.values()),
    )


def _within(positions: HeadPositions, rows_S: Tensor, width: int) -> HeadPositions:
    """Select the positions that lie in the given rows, keeping their order."""
    kept_N = torch.isin(positions.positions_N // width, rows_S)
    return HeadPositions(
        positions_N=positions.positions_N[kept_N],
        targets_N=positions.targets_N[kept_N],
        weights_N=positions.weights_N[kept_N],
        num_current=int(kept_N[: positions.num_current].sum()),
        num_distilled=int(kept_N[: positions.num_distilled].sum()),
    )


def concatenate(parts: Sequence[Predictions]) -> Predictions:
    """Concatenate the predictions of all micro-batches in order."""
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    if first.output is None:
        return Predictions({head: torch.cat([part.logits[head] for part in parts]) for head in first.logits})
    hidden = {head: torch.cat([part.hidden[head] for part in parts]) for head in first.hidden}
    return Predictions(ComputedLogits(hidden, first.output), hidden, first.output)
