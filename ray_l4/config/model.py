"""Which language model learns: a part of the experiment file (``experiment.py``)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ray_l4.config.fields import Count, Fraction, Strict


class FromScratch(Strict):
    """A GPT-2 of this size with random weights and a byte-level BPE trained on the stream's text."""

    layers: Count = 4
    """Transformer blocks."""
    width: Count = 256
    """Size of the hidden state."""
    heads: Count = 4
    """Attention heads; must divide the width."""
    positions: Count = 512
    """Longest sequence in tokens."""
    vocabulary: Annotated[int, Field(ge=300)] = 2000
    """Largest size of the byte-level BPE, before task tokens."""
    dropout: Fraction = 0.1
    """Dropout of embeddings, attention and residuals."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> FromScratch:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        return self


class LoraConfig(Strict):
    """Low-rank adapters: the model's own weights stay as they are, and checkpoints hold the adapters alone."""

    rank: Count = 8
    """Rank of every adapter."""
    alpha: Annotated[float, Field(gt=0)] = 16.0
    """Adapters are scaled by alpha / rank."""
    dropout: Fraction = 0.1
    """Dropout before every adapter. Without any, peers that start equal stay equal."""
    targets: list[str] | None = None
    """Names of the layers that get an adapter; those usual for the architecture when not given."""


class ModelConfig(Strict):
    """The language model of every peer: a pretrained one by name or path, or a small one from scratch."""

    name: str | None = None
    """Anything that ``AutoModelForCausalLM`` loads: a hub name or a folder."""
    from_scratch: FromScratch | None = None
    """Build a small GPT-2 instead."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of matrix products; weights, losses and the optimiser are float32 either way."""
    max_length: Count | None = None
    """Longest training sequence in tokens; the model's own limit when not given."""
    lora: LoraConfig | None = None
    """Train low-rank adapters instead of all weights."""
    task_tokens: Literal["own", "shared"] = "own"
    """Whether every task's text starts with a token of its own, or all with that of the first task (LAMOL-GEN)."""
    spare_task_tokens: Annotated[int, Field(ge=0)] = 8
    """Task tokens kept free for tasks that arrive later, so that the vocabulary never grows during a run."""

    @model_validator(mode="after")
    def _one_source(self) -> ModelConfig:
        if (self.name is None) == (self.from_scratch is None):
            raise ValueError("give exactly one of 'name' and 'from_scratch'")
        if self.lora is not None and self.name is None:
            raise ValueError("'lora' puts adapters on a pretrained model: give its 'name' instead of 'from_scratch'")
        return self
