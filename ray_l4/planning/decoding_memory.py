"""What an evaluator holds in memory: a model, and the keys and values of the examples that it decodes together."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ray_l4.config.experiment import ExperimentConfig
from ray_l4.learner.models import arithmetic
from ray_l4.planning.memory_trace import Ledger
from ray_l4.planning.meta_models import Vocabulary, blank_student, longest

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Decoding:
    """One evaluator at its largest."""

    tensors: Mapping[str, int]
    """Bytes by purpose: weights, cache."""
    resident: int
    """Bytes that the process had from the machine at most for tensors on the CPU, gaps in the heap included."""


def rehearse_decoding(experiment: ExperimentConfig, tokens: Vocabulary, length: int | None = None) -> Decoding:
    """Read a batch of the longest prompts at once, without weights and data: what decoding comes to in the end.

    length: tokens of prompt and answer; the model's limit when not given. Raises ModelError if a named model has no
    configuration.
    """
    chunk = max(experiment.evaluation.chunk, experiment.replay.chunk)
    with ExitStack() as stack:
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        ledger = stack.enter_context(Ledger(_CPU))
        ledger.begin("weights")
        model = blank_student(experiment.model, tokens).eval()
        ledger.begin("cache")
        ledger.answer = 0.0  # "is nothing padded?"
        stack.enter_context(torch.no_grad())
        stack.enter_context(arithmetic(experiment.model, _CPU))
        ids_BT = torch.zeros(chunk, length or longest(experiment.model), dtype=torch.long)
        state = model.base_model(input_ids=ids_BT, attention_mask=torch.ones_like(ids_BT), use_cache=True)
        model.get_output_embeddings()(state.last_hidden_state[:, -1])
        return Decoding(dict(ledger.peak), ledger.resident)
