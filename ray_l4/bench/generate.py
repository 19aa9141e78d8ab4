"""``ray-l4 bench generate``: tokens a second of the decoding engine against Transformers' ``generate``, in turns."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import nn
from transformers import GenerationConfig, GPT2LMHeadModel

from ray_l4.bench.isolated_process import IsolatedProcess
from ray_l4.bench.ledger import provenance
from ray_l4.bench.spans import quantiles, synchronise
from ray_l4.bench.step_sides import SHAPES
from ray_l4.bench.textbook import gpt2
from ray_l4.learner.batched_engine import BatchedEngine
from ray_l4.learner.engine import Decoding, Prompt
from ray_l4.seeds import derive
from ray_l4.workers.process import peak_resident_bytes

Work = Literal["replay", "answers"]
_END, _FIRST_WORD = 2, 3
_LIMIT = 200
_POSITIONS = 1024
_TOP_K = 20
_SHARPNESS = 14.0
"""Factor of the output matrix: without it, the tokens of an untrained model are about equally likely."""
_MEAN_LENGTH = 60
"""Tokens of a pseudo-example, about, before the last one."""
_PROMPT_LENGTHS = (20, 140)
"""Shortest and longest prompt that is answered."""
_ANSWER_LIMIT = 24


@dataclass(frozen=True)
class GenerateCase:
    """What both sides generate."""

    model: str
    work: Work
    examples: int
    chunk: int
    """Examples that are generated together, as a work item of an evaluator."""
    threads: int
    device: str = "cpu"


class Generated(NamedTuple):
    """What one side made of all prompts."""

    cpu_seconds: float
    wall_seconds: float
    tokens: int
    """New tokens, those that end a continuation included."""


class GenerateSide:
    """One side, in a process of its own."""

    def __init__(self, case: GenerateCase, textbook: bool) -> None:
        torch.set_num_threads(case.threads)
        self._case = case
        self._before = peak_resident_bytes()
        self._model = _model(case)
        self._extend = _with_generate if textbook else _with_engine

    def generate(self, seed: int) -> Generated:
        """Continue all prompts, chunk by chunk: greedily if they are answered, sampled if they are replay."""
        prompts = _prompts(self._case, seed)
        cpu, wall = time.process_time(), time.perf_counter()
        made = self._all(prompts, self._case.work == "replay")
        synchronise(torch.device(self._case.device))
        tokens = sum(min(len(own) + 1, _limit(self._case)) for own in made)
        return Generated(time.process_time() - cpu, time.perf_counter() - wall, tokens)

    def greedy(self) -> list[list[int]]:
        """Continue the prompts greedily."""
        return self._all(_prompts(self._case, 0)[: self._case.chunk], sampled=False)

    def peak_memory(self) -> tuple[int, int]:
        """Return the peak memory of this process in bytes, and how much of it came after the libraries were loaded."""
        peak = peak_resident_bytes()
        return peak, peak - self._before

    def _all(self, prompts: Sequence[Prompt], sampled: bool) -> list[list[int]]:
        parts = [prompts[first : first + self._case.chunk] for first in range(0, len(prompts), self._case.chunk)]
        return [new for part in parts for new in self._extend(self._model, part, sampled)]


def measure(case: GenerateCase, rounds: int, progress: Callable[[str], None]) -> dict[str, Any]:
    """Measure ``rounds`` rounds of both sides, each in a process of its own; they take turns round by round.

    Raises PeerError if one of the processes dies.
    """
    progress(f"{case.model}, {case.work}: {rounds} rounds of {case.examples} examples on each side, in turns")
    made: list[list[Generated]] = [[], []]
    with (
        closing(IsolatedProcess(GenerateSide, case, False)) as here,
        closing(IsolatedProcess(GenerateSide, case, True)) as textbook,
    ):
        equal = here.call("greedy") == textbook.call("greedy")
        for number in range(rounds):
            for own, side in zip(made, (here, textbook), strict=True):
                own.append(side.call("generate", number))
        peaks = [side.call("peak_memory") for side in (here, textbook)]
    rates = [[own.tokens / own.cpu_seconds for own in side] for side in made]
    walls = [[own.tokens / own.wall_seconds for own in side] for side in made]
    return {
        "bench": "generate",
        "model": case.model,
        "work": case.work,
        "batch": case.chunk,
        "examples": case.examples,
        "threads": case.threads,
        "tokens_per_cpu_second": statistics.median(rates[0]),
        "textbook_tokens_per_cpu_second": statistics.median(rates[1]),
        "speedup_over_textbook": statistics.median(a / b for a, b in zip(*rates, strict=True)),
        "wall_speedup_over_textbook": statistics.median(a / b for a, b in zip(*walls, strict=True)),
        "greedy_outputs_equal": equal,
        "peak_rss_bytes": peaks[0][0],
        "memory_ratio_to_textbook": peaks[0][1] / peaks[1][1],
        "tokens_per_example": made[0][0].tokens / case.examples,
        "tokens_per_second": quantiles(walls[0]),
        "textbook_tokens_per_second": quantiles(walls[1]),
        "rounds": rounds,
        "device": case.device,
        **provenance(),
    }


def _limit(case: GenerateCase) -> int:
    return _LIMIT if case.work == "replay" else _ANSWER_LIMIT


def _prompts(case: GenerateCase, seed: int) -> list[Prompt]:
    """Return a token each for replay, and prompts of different lengths to be answered."""
    generator = torch.Generator().manual_seed(derive(0, "bench generate", seed))
    vocabulary = SHAPES[case.model].vocabulary
    shortest, longest = (1, 1) if case.work == "replay" else _PROMPT_LENGTHS
    lengths = torch.randint(shortest, longest + 1, (case.examples,), generator=generator).tolist()
    ids = [torch.randint(_FIRST_WORD, vocabulary, (length,), generator=generator).tolist() for length in lengths]
    return [Prompt(own, _limit(case), derive(seed, "prompt", index)) for index, own in enumerate(ids)]


@torch.no_grad()
def _model(case: GenerateCase) -> GPT2LMHeadModel:
    """Build a model with random weights whose continuations end after ``_MEAN_LENGTH`` tokens on average."""
    shape = SHAPES[case.model]
    torch.manual_seed(derive(0, "bench generate", "model"))
    model = gpt2(shape.gpt2(shape.vocabulary, _POSITIONS), _END).eval()
    head = nn.Linear(shape.width, shape.vocabulary)
    head.weight.copy_(_SHARPNESS * model.transformer.wte.weight)
    head.weight[_END] = 0.0
    head.bias.zero_()
    model.lm_head = head
    probe_BT = torch.randint(_FIRST_WORD, shape.vocabulary, (64, 40))
    likely_BK = torch.topk(model(input_ids=probe_BT).logits[:, -1], _TOP_K - 1).values
    head.bias[_END] = torch.logsumexp(likely_BK, -1).mean() - math.log(_MEAN_LENGTH - 1)
    return model.to(torch.device(case.device))


def _with_engine(model: GPT2LMHeadModel, prompts: Sequence[Prompt], sampled: bool) -> list[list[int]]:
    return BatchedEngine().extend(model, prompts, Decoding(_TOP_K if sampled else 1, end=_END))


@torch.inference_mode()
def _with_generate(model: GPT2LMHeadModel, prompts: Sequence[Prompt], sampled: bool) -> list[list[int]]:
    """Pad the prompts on the left and call ``generate``, as its documentation says."""
    longest = max(len(own.ids) for own in prompts)
    ids_BT = torch.tensor([[0] * (longest - len(own.ids)) + list(own.ids) for own in prompts], device=model.device)
    mask_BT = torch.tensor(
        [[0] * (longest - len(own.ids)) + [1] * len(own.ids) for own in prompts], device=model.device
    )
    model.generation_config = GenerationConfig(
        max_new_tokens=prompts[0].limit,
        do_sample=sampled,
        top_k=_TOP_K if sampled else None,
        eos_token_id=_END,
        pad_token_id=0,
        use_cache=True,
    )
    new_BT = model.generate(input_ids=ids_BT, attention_mask=mask_BT)[:, longest:].tolist()
    return [row[: row.index(_END)] if _END in row else row for row in new_BT]
