"""Sequences that lie one after another, without padding between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

_OVERHEAD = 20_000
"""Scores whose computation takes as long as the calls for one more group of sequences."""


@dataclass(frozen=True)
class Group:
    """Sequences of similar length that are attended to together, padded to the longest of them."""

    size: int
    length: int
    rows_P: Tensor
    """(size * length,) the packed position of every padded one; that of some other token for padding."""
    places_N: Tensor
    """(tokens of the group,) the padded position of each of its tokens, in the order of ``tokens_N``."""
    tokens_N: Tensor
    """(tokens of the group,) their packed positions."""
    padding_P: Tensor | None
    """(size * length,) True at padding; None if there is none."""


@dataclass(frozen=True)
class Grouping:
    """All groups of a pack."""

    groups: Sequence[Group]
    places_S: Tensor
    """(num_tokens,) the place of every token among those of all groups, one group after another."""


class Sequences:
    """The lengths of packed sequences, and what attention derives from them once for all layers."""

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        self.lengths = list(lengths)
        self.device = device

    @cached_property
    def position_ids_S(self) -> Tensor:
        """The position of every token within its sequence, (num_tokens,)."""
        return self._placed(torch.cat([torch.arange(length) for length in self.lengths]))

    @cached_property
    def offsets(self) -> Tensor:
        """The first token of each sequence, and the number of all tokens: (num_sequences + 1,)."""
        return self._placed(torch.tensor([0, *np.cumsum(self.lengths)]))

    def grouped(self, heads: int) -> Grouping:
        """Return groups of sequences in which padding costs less than a group of their own would."""
        if heads not in self._groupings:
            groups = [self._group(members) for members in _grouped(self.lengths, heads)]
            tokens_S = torch.cat([group.tokens_N for group in groups])
            places_S = torch.empty_like(tokens_S)
            places_S[tokens_S] = torch.arange(len(tokens_S), device=self.device)
            self._groupings[heads] = Grouping(groups, places_S)
        return self._groupings[heads]

    @cached_property
    def _groupings(self) -> dict[int, Grouping]:
        return {}

    def _group(self, members: Sequence[int]) -> Group:
        starts = np.cumsum([0, *self.lengths])
        longest = max(self.lengths[member] for member in members)
        column = np.arange(longest)
        lengths = np.asarray([self.lengths[member] for member in members])
        real = column < lengths[:, None]
        rows = np.where(real, np.asarray([starts[member] for member in members])[:, None] + column, 0)
        rows_P, real_P = torch.from_numpy(rows.ravel()), torch.from_numpy(real.ravel())
        places_N = torch.from_numpy(np.flatnonzero(real))
        padding_P = None if real.all() else self._placed(~real_P)
        rows_P, places_N, tokens_N = (self._placed(own) for own in (rows_P, places_N, rows_P[places_N]))
        return Group(len(members), longest, rows_P, places_N, tokens_N, padding_P)

    def _placed(self, tensor: Tensor) -> Tensor:
        """Copy to the device, asking not to wait for what it does now."""
        return tensor.to(self.device, non_blocking=True)


def _grouped(lengths: Sequence[int], heads: int) -> list[list[int]]:
    """Return the sequences of each group, from the longest to the shortest sequence."""
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    groups: list[list[int]] = []
    waste = 0
    for index in order:
        longest = lengths[groups[-1][0]] if groups else 0
        waste += heads * (longest**2 - lengths[index] ** 2)
        if groups and waste <= _OVERHEAD:
            groups[-1].append(index)
        else:
            groups.append([index])
            waste = 0
    return groups
