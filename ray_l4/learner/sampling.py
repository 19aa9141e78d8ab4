"""The choice of new tokens from logits: greedy, or sampled with noise that belongs to each row."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ray_l4.learner.engine import Decoding

_BLOCK = 16
"""Tokens for which noise is drawn at once: a call of NumPy takes longer than its draws for one token."""
_BLOCK_NUMBERS = 16_384
"""Noise for one row at most, where ``top_k`` is large."""


class Chooser:
    """Choose one token for every row, the arg max of its logits or a sample from the ``top_k`` most likely tokens.

    The arg max of log-probabilities plus independent Gumbel noise is a draw from the distribution. A row gets its noise
    from its own generator, token by token, so a sample depends neither on the other rows nor on how many tokens there
    may be. Ties at the k-th logit are broken by position (REFERENCE.md#replay keeps them all; float logits of a trained
    model do not tie).
    """

    def __init__(self, decoding: Decoding, device: torch.device) -> None:
        self._top_k = decoding.top_k
        self._temperature = decoding.temperature
        self._top_p = decoding.top_p
        self._device = device
        self._banned = torch.tensor(list(decoding.banned), device=device) if decoding.banned else None
        self.block = max(1, min(_BLOCK, _BLOCK_NUMBERS // decoding.top_k))
        """Number of tokens for which ``noise`` is drawn."""

    def noise(self, generators: Sequence[np.random.Generator], tokens: int | None = None) -> Tensor | None:
        """Draw the noise of the next tokens of every row, (tokens, rows, top_k); None if greedy.

        ``tokens``: ``block`` if not given. However many are drawn at once, a token has the same noise.
        """
        if self._top_k == 1:
            return None
        drawn = np.stack([own.gumbel(size=(tokens or self.block, self._top_k)) for own in generators], axis=1)
        return torch.from_numpy(drawn.astype(np.float32)).to(self._device)

    def choose(self, logits_BV: Tensor, noise_BK: Tensor | None) -> Tensor:
        """Return the chosen ids, (rows,)."""
        if self._banned is not None:
            # A model of before the vocabulary grew lacks the rows of later tokens.
            banned = self._banned[self._banned < logits_BV.shape[1]]
            logits_BV = logits_BV.index_fill(1, banned, -torch.inf)
        if noise_BK is None:
            return logits_BV.argmax(-1)
        # In bfloat16 the noise would cause ties, which arg max breaks by position.
        k = min(self._top_k, logits_BV.shape[1])
        best_BK, ids_BK = torch.topk(logits_BV.float(), k, dim=-1)
        scaled_BK = best_BK / self._temperature
        if self._top_p < 1:
            shares_BK = scaled_BK.softmax(-1)
            before_BK = shares_BK.cumsum(-1) - shares_BK
            scaled_BK = scaled_BK.masked_fill(before_BK >= self._top_p, -torch.inf)
        rank_B1 = (scaled_BK + noise_BK[:, :k]).argmax(-1, keepdim=True)
        return ids_BK.gather(1, rank_B1).squeeze(1)
