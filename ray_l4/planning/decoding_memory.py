"""Memory of an evaluator: its model or models, and the keys and values of the examples that it decodes together."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ray_l4.config.experiment import ExperimentConfig
from ray_l4.learner.cache_memory import bytes_per_token, cache_budget
from ray_l4.learner.mean_state import begin_together
from ray_l4.learner.model_calls import ModelCalls
from ray_l4.learner.model_config import sequence_limit
from ray_l4.learner.models import arithmetic
from ray_l4.methods import num_students, peer_experiment, scores_together
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
    experiment: ExperimentConfig, vocabulary: Vocabulary, length: int | None = None, *, gpu: bool = False
) -> DecodingMemory:
    """Decode one token after the longest prompts, without weights or data, and return the memory that takes.

    This is the state that decoding reaches at its end: keys and values of as many rows as the engine holds together on
    a CPU. If all students are scored together, it holds the model of each. length: tokens of prompt and answer
    together; the model's limit if None. gpu: whether it is for a GPU, of which the engine takes what is free for the
    rows of a chunk, so all of them are counted. Raises ModelError if a named model has no configuration.
    """
    chunk = max(experiment.evaluation.chunk, experiment.replay.chunk)
    length = length or sequence_limit(experiment.model)
    with ExitStack() as stack:
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        trace = stack.enter_context(MemoryTrace(_CPU))
        trace.begin("weights")
        settings = [experiment.model]
        if scores_together(experiment):
            settings = [peer_experiment(experiment, student).model for student in range(num_students(experiment))]
        models = [meta_model(own, vocabulary).eval() for own in settings]
        trace.begin("cache")
        stack.enter_context(torch.no_grad())
        stack.enter_context(arithmetic(experiment.model, _CPU))
        fitting = cache_budget(_CPU) // (length * sum(bytes_per_token(own.config, own.dtype) for own in models))
        rows = chunk if gpu else max(1, min(chunk, fitting))
        state = begin_together([ModelCalls.of(own) for own in models], [[0] * length] * rows, room=0)
        state.grow(length)
        state.step(torch.zeros(rows, dtype=torch.long))
        return DecodingMemory(dict(trace.peak), trace.resident)
