"""Continuation of prompts, greedy or sampled; a sample depends on its own seed, not on its batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from ray_l4.text.batches import left_padded
from ray_l4.text.tokenizer import TaskTokenizer


class TopKSampler(LogitsProcessor):
    """Sample from the ``top_k`` most likely tokens: greedy search over the returned scores draws the sample.

    The arg max of log-probabilities plus independent Gumbel noise is a draw from the distribution. Row i gets its noise
    from the generator of ``seeds[i]``, token by token, so a sample depends neither on the other rows nor on how many
    tokens there may be. Ties at the k-th logit are broken by position (REFERENCE.md#replay keeps them all; float logits
    of a trained model do not tie).
    """

    def __init__(self, seeds: Sequence[int], top_k: int, temperature: float) -> None:
        self.top_k = top_k
        self.temperature = temperature
        self._generators = [np.random.default_rng(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # (B, T), (B, vocab) -> (B, vocab)
        k = min(self.top_k, scores.shape[-1])
        best_BK, ids_BK = torch.topk(scores.float() / self.temperature, k, dim=-1)
        noise = np.stack([generator.gumbel(size=self.top_k) for generator in self._generators])
        noise_BK = torch.from_numpy(noise[:, :k]).float().to(scores.device)
        drawn_BV = torch.full_like(scores, -torch.inf, dtype=torch.float32)
        return drawn_BV.scatter_(1, ids_BK, best_BK + noise_BK)


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
    """Id that ends a continuation; None for EOS, which ends an answer."""


GREEDY = Decoding()


@torch.inference_mode()
def continue_prompts(
    model: PreTrainedModel,
    tokenizer: TaskTokenizer,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    decoding: Decoding = GREEDY,
    seeds: Sequence[int] | None = None,
) -> list[list[int]]:
    """Return the new tokens of every prompt, up to but excluding the first ``decoding.end``.

    To sample, ``seeds`` holds one seed per prompt. Dropout is off; the model's mode is restored.

    Raises ValueError if sampling is not given exactly one seed per prompt.
    """
    end = tokenizer.eos if decoding.end is None else decoding.end
    was_training = model.training
    model.eval()
    processors = LogitsProcessorList()
    if decoding.top_k > 1:
        if seeds is None or len(seeds) != len(prompts):
            raise ValueError(f"sampling needs one seed for each of the {len(prompts)} prompts")
        processors.append(TopKSampler(seeds, decoding.top_k, decoding.temperature))
    input_ids_BT, attention_mask_BT = left_padded(prompts, tokenizer.pad)
    # Replaces the model's own: Transformers takes unset options from there, such as a repetition penalty.
    model.generation_config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        eos_token_id=end,
        pad_token_id=tokenizer.pad,
        use_cache=True,
        suppress_tokens=list(decoding.banned) or None,
    )
    output_BT = model.generate(
        input_ids=input_ids_BT.to(model.device),
        attention_mask=attention_mask_BT.to(model.device),
        logits_processor=processors,
    )
    model.train(was_training)
    new_BT = output_BT[:, input_ids_BT.shape[1] :].tolist()
    return [row[: row.index(end)] if end in row else row for row in new_BT]


def continue_within(
    model: PreTrainedModel,
    tokenizer: TaskTokenizer,
    prompts: Sequence[Sequence[int]],
    limits: Sequence[int],
    decoding: Decoding,
    seeds: Sequence[int],
) -> list[list[int]]:
    """Return the new tokens of every prompt like ``continue_prompts``, each at most as many as its own limit.

    All prompts of a batch share one limit, since a longer one may take another prompt beyond the model's positions.
    Prompts with different limits are therefore continued separately.
    """
    new: dict[int, list[int]] = {}
    for limit in sorted(set(limits)):
        members = [index for index, own in enumerate(limits) if own == limit]
        continued = continue_prompts(
            model,
            tokenizer,
            [prompts[index] for index in members],
            limit,
            decoding,
            seeds=[seeds[index] for index in members],
        )
        new.update(zip(members, continued, strict=True))
    return [new[index] for index in range(len(prompts))]
