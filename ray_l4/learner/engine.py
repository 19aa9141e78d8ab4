"""What a decoding engine is asked for: prompts, each with its own limit and seed, and how tokens are chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from transformers import PreTrainedModel


@dataclass(frozen=True)
class Decoding:
    """How new tokens are chosen."""

    top_k: int = 1
    """1 decodes greedily; more samples from that many most likely tokens."""
    temperature: float = 1.0
    """Of samples."""
    banned: Sequence[int] = ()
    """Ids that are never chosen: they are removed before the ``top_k`` most likely tokens are selected."""
    end: int | None = None
    """Id that ends a continuation; None for EOS, which ends an answer. An engine gets the id."""
    top_p: float = 1.0
    """Of samples: share of the ``top_k`` tokens' probability, of which the most likely tokens that reach it are kept
    (Holtzman et al. 2020, nucleus sampling). The most likely one always is."""


@dataclass(frozen=True)
class Prompt:
    """Tokens to be continued."""

    ids: Sequence[int]
    """At least one."""
    limit: int
    """Number of new tokens at most."""
    seed: int = 0
    """Of a sample."""


class Engine(Protocol):
    """Continues prompts, in whatever batches it likes."""

    def extend(self, model: PreTrainedModel, prompts: Sequence[Prompt], decoding: Decoding) -> list[list[int]]:
        """Return the new tokens of every prompt, up to but excluding the first ``decoding.end``.

        ``model`` is in evaluation mode. A continuation depends neither on the other prompts nor on their order.
        """
        ...
