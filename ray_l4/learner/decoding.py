"""Continuation of prompts, greedy or sampled; a sample depends on its own seed, not on its batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from transformers import PreTrainedModel

from ray_l4.learner.batched_engine import BatchedEngine
from ray_l4.learner.engine import Decoding, Engine, Prompt
from ray_l4.text.tokenizer import TaskTokenizer

GREEDY = Decoding()
ENGINE = BatchedEngine()


def continue_prompts(
    model: PreTrainedModel,
    tokenizer: TaskTokenizer,
    prompts: Sequence[Sequence[int]],
    limits: int | Sequence[int],
    decoding: Decoding = GREEDY,
    seeds: Sequence[int] | None = None,
    engine: Engine = ENGINE,
) -> list[list[int]]:
    """Return the new tokens of every prompt, up to but excluding the first ``decoding.end``.

    ``limits``: number of new tokens at most, for all prompts or for each. To sample, ``seeds`` holds one seed per
    prompt. Dropout is off; the model's mode is restored.

    Raises ValueError if sampling is not given exactly one seed per prompt, or a prompt has no tokens.
    """
    if decoding.top_k > 1 and (seeds is None or len(seeds) != len(prompts)):
        raise ValueError(f"sampling needs one seed for each of the {len(prompts)} prompts")
    own_limits = [limits] * len(prompts) if isinstance(limits, int) else limits
    own_seeds = [0] * len(prompts) if decoding.top_k == 1 or seeds is None else seeds
    requests = [Prompt(*request) for request in zip(prompts, own_limits, own_seeds, strict=True)]
    resolved = replace(decoding, end=tokenizer.eos if decoding.end is None else decoding.end)
    was_training = model.training
    model.eval()
    try:
        return engine.extend(model, requests, resolved)
    finally:
        model.train(was_training)
