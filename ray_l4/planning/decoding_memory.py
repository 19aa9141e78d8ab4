"""Memory of an evaluator: a model, and the keys and values of the examples that it decodes together."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ray_l4.config.experiment import ExperimentConfig
from ray_l4.learner.model_config import sequence_limit
from ray_l4.learner.models import arithmetic
from ray_l4.planning.memory_trace import MemoryTrace
from ray_l4.planning.meta_models import Vocabulary, meta_model

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class DecodingMemory:
    """Peak memory of one evaluator."""

    tensors: Mapping[str, int]
    """Purpose (``weights``, ``cache``) -> bytes."""
    resident: int
    """Bytes that the process had from the system for tensors on the CPU, gaps in the heap included."""


def simulate_decoding(
    experiment: ExperimentConfig, vocabulary: Vocabulary, length: int | None = None
) -> DecodingMemory:
    """Run one forward pass over a batch of the longest prompts, without weights or data, and return its memory.

    This is the state that decoding reaches at its end. length: tokens of prompt and answer together; the model's limit
    if None. Raises ModelError if a named model has no configuration.
    """
    chunk = max(experiment.evaluation.chunk, experiment.replay.chunk)
    with ExitStack() as stack:
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        trace = stack.enter_context(MemoryTrace(_CPU))
        trace.begin("weights")
        model = meta_model(experiment.model, vocabulary).eval()
        trace.begin("cache")
        stack.enter_context(torch.no_grad())
        stack.enter_context(arithmetic(experiment.model, _CPU))
        ids_BT = torch.zeros(chunk, length or sequence_limit(experiment.model), dtype=torch.long)
        state = model.base_model(input_ids=ids_BT, attention_mask=torch.ones_like(ids_BT), use_cache=True)
        model.get_output_embeddings()(state.last_hidden_state[:, -1])
        return DecodingMemory(dict(trace.peak), trace.resident)
