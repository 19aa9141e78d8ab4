"""The tokens a second that the engine decodes on a CPU, beside those of Transformers' ``generate``.

::

    python -m analysis.benchmarks.decoding [--rows N] [--chunk N] [--rounds N]

Pseudo-examples of a GPT-2 with random weights, whose end has a bias, so that lengths vary as those of real data do.
Both sides draw the same samples, in turns; the best CPU time of each counts, which other processes disturb little.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel, LogitsProcessor, LogitsProcessorList

from ray_l4.learner.batched_engine import BatchedEngine
from ray_l4.learner.engine import Decoding, Prompt
from ray_l4.learner.sampling import Chooser

VOCABULARY, WIDTH, LIMIT, END = 3000, 128, 200, 2
SAMPLED = Decoding(top_k=20, end=END)
_SHARPNESS = 14.0
_END_BIAS = 0.6 - math.log(59)
"""Gives continuations of 50 tokens on average, the longest of 200."""


class _Sampler(LogitsProcessor):
    """Leaves the chosen token alone."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self._chooser = Chooser(SAMPLED, torch.device("cpu"))
        self._noise = [np.random.default_rng(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        drawn = torch.stack([torch.from_numpy(own.gumbel(size=SAMPLED.top_k)).float() for own in self._noise])
        chosen_B1 = self._chooser.choose(scores, drawn)[:, None]
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen_B1, 0.0)


def small_model() -> Any:
    """Build the model."""
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCABULARY, "n_positions": 256, "n_embd": WIDTH, "n_layer": 3, "n_head": 4}
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=END)).eval()
    head = nn.Linear(WIDTH, VOCABULARY)
    with torch.no_grad():
        head.weight.copy_(_SHARPNESS * model.transformer.wte.weight)
        head.weight[END] = 0
        head.bias.zero_()
        model.lm_head = head
        logits_BV = model(input_ids=torch.randint(3, VOCABULARY, (64, 40))).logits[:, -1]
        head.bias[END] = torch.logsumexp(torch.topk(logits_BV, SAMPLED.top_k - 1).values, -1).mean() + _END_BIAS
    return model


def with_generate(model: Any, prompts: Sequence[Prompt]) -> list[list[int]]:
    """Continue prompts of one length with Transformers' loop."""
    model.generation_config = GenerationConfig(
        max_new_tokens=LIMIT, do_sample=False, eos_token_id=END, pad_token_id=0, use_cache=True
    )
    ids_BT = torch.tensor([list(prompt.ids) for prompt in prompts])
    sampler = LogitsProcessorList([_Sampler([prompt.seed for prompt in prompts])])
    with torch.inference_mode():
        out_BT = model.generate(input_ids=ids_BT, attention_mask=torch.ones_like(ids_BT), logits_processor=sampler)
    new_BT = out_BT[:, ids_BT.shape[1] :].tolist()
    return [row[: row.index(END)] if END in row else row for row in new_BT]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rows", 128), ("chunk", 64), ("rounds", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    model, engine = small_model(), BatchedEngine()
    prompts = [Prompt([5 + index % 3], LIMIT, index) for index in range(options.rows)]
    sides: dict[str, Callable[[list[Prompt]], list[list[int]]]] = {
        "generate": lambda part: with_generate(model, part),
        "engine": lambda part: engine.extend(model, part, SAMPLED),
    }
    seconds = dict.fromkeys(sides, math.inf)
    found: dict[str, list[list[int]]] = {}
    for _ in range(options.rounds):
        for name, side in sides.items():
            begun = time.process_time()
            parts = range(0, options.rows, options.chunk)
            found[name] = [row for first in parts for row in side(prompts[first : first + options.chunk])]
            seconds[name] = min(seconds[name], time.process_time() - begun)
    tokens = sum(len(row) + 1 for row in found["engine"])
    for name, taken in seconds.items():
        print(f"{name}: {tokens / taken:.0f} tokens a second, {taken:.2f} s")
    print(f"{seconds['generate'] / seconds['engine']:.1f} times; equal samples: {found['engine'] == found['generate']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
