"""Language model settings of the experiment file (``experiment.py``)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ray_l4.config.fields import Count, Fraction, Strict


class FromScratch(Strict):
    """A GPT-2 of the given size with random weights, and a byte-level BPE trained on the text of the stream."""

    layers: Annotated[Count, Field(le=512)] = 4
    """Number of transformer blocks."""
    width: Annotated[Count, Field(le=2**17)] = 256
    """Size of the hidden state."""
    heads: Annotated[Count, Field(le=2**12)] = 4
    """Number of attention heads; must divide ``width``."""
    positions: Annotated[Count, Field(le=2**22)] = 512
    """Maximum sequence length in tokens."""
    vocabulary: Annotated[int, Field(ge=300, le=2**22)] = 2000
    """Maximum vocabulary size of the byte-level BPE, without task tokens."""
    dropout: Fraction = 0.1
    """Dropout rate of embeddings, attention and residual branches."""

    @model_validator(mode="after")
    def _check_heads(self) -> FromScratch:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        return self


class LoraConfig(Strict):
    """Low-rank adapters. The model's own weights stay frozen, and checkpoints hold only the adapters."""

    rank: Count = 8
    """Rank of every adapter's matrices."""
    alpha: Annotated[float, Field(gt=0)] = 16.0
    """Numerator of the adapters' scale, alpha / rank."""
    dropout: Fraction = 0.1
    """Dropout rate before every adapter. With 0, peers that start equal stay equal."""
    targets: list[str] | None = None
    """Names of the layers that get an adapter. If not given, those usual for the architecture."""
    subspaces: Count | None = None
    """Number of parts of an adapter, each of ``rank``, of which every stage trains its own (``olora``). A run can have
    at most as many stages. If not given, 8, or as many as the stream has items if these are more; 1 for other
    methods."""


class ModelConfig(Strict):
    """Language model of a peer: a pretrained one by name or path, or a small one from scratch."""

    name: str | None = None
    """A Hugging Face Hub name or a folder that ``AutoModelForCausalLM`` can load."""
    from_scratch: FromScratch | None = None
    """Size of a GPT-2 with random weights, instead of ``name``."""
    trust_custom_code: bool = False
    """Run the Python code that comes with the model (``auto_map`` in its ``config.json``), in every process that loads
    it, with all rights of your account. If false, Transformers' own code is run, and a model of an architecture that it
    does not contain is refused."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of matrix products. Losses and the optimiser always use float32, and so do weights by default (see
    ``dtype``)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of a pretrained model's weights, and of products with them. ``bfloat16`` takes half the memory. Adapters
    (``lora``) stay float32; without them, small updates of bfloat16 weights are lost to rounding."""
    gradient_checkpointing: bool = False
    """Keep no activations inside a layer for the backward pass, but compute them again: less memory, about a third more
    time, the same gradients."""
    compile: bool = False
    """Compile the blocks of the model with ``torch.compile`` as training begins, attention excepted. It takes about a
    minute, needs a C or C++ compiler, changes the last bits of results, and draws other dropout masks. Not together
    with ``gradient_checkpointing``."""
    max_length: Count | None = None
    """Maximum length of a training sequence in tokens. If not given, the model's limit."""
    chat_template: Literal["auto", "none"] = "auto"
    """``auto``: render prompts in the chat template of the model's tokeniser, if it has one, as an instruct model knows
    them. ``none``: context, question and answer token, as for a model without a template."""
    lora: LoraConfig | None = None
    """Train low-rank adapters instead of all weights."""
    task_tokens: Literal["own", "shared"] = "own"
    """First token of a task's text. ``own``: one for each task. ``shared``: the same for all tasks (LAMOL-GEN)."""
    spare_task_tokens: Annotated[int, Field(ge=0)] = 8
    """Number of unused task tokens reserved for later tasks, so that the vocabulary never grows during a run."""

    @model_validator(mode="after")
    def _check_source(self) -> ModelConfig:
        if (self.name is None) == (self.from_scratch is None):
            raise ValueError("give exactly one of 'name' and 'from_scratch'")
        if self.lora is not None and self.name is None:
            raise ValueError("'lora' adapts a pretrained model: give its 'name' instead of 'from_scratch'")
        if self.compile and self.gradient_checkpointing:
            raise ValueError(
                "'compile' has no effect on layers whose activations are computed again: remove it, or "
                "'gradient_checkpointing'"
            )
        if self.dtype != "float32" and self.name is None:
            raise ValueError(
                "'dtype' is that of a pretrained model: give its 'name', or train 'from_scratch' in float32"
            )
        return self
