"""What a request asks of a model: how tokens are chosen, and the prompt that was made of it."""

from __future__ import annotations

from dataclasses import dataclass

from ray_l4.learner.engine import Decoding, Prompt


@dataclass(frozen=True)
class Sampling:
    """What a request says about new tokens. What is None follows the run."""

    max_tokens: int | None = None
    temperature: float | None = None
    """None or 0 decodes greedily."""
    top_p: float | None = None
    seed: int | None = None


@dataclass(frozen=True)
class Asked:
    """A request as the model gets it."""

    prompt: Prompt
    decoding: Decoding
    strip: bool
    """Whether its text is an answer, which has no white space at its ends."""
    cut: bool = False
    """Whether a part of the context was left out, as in the run, for lack of room."""
