"""What the shortcuts for adapters on a pretrained model save on a CPU, measured in pairs.

::

    python -m analysis.benchmarks.adapters MODEL [--rounds N]

Each shortcut is measured with and without it, in turns, in bfloat16 on one thread, with adapters of rank 16 on all
linear layers. ``contiguous_rows`` and ``merged_token_rows`` are parts of decoding: 40 answers of 40 tokens to prompts
of 40 tokens. ``float32_attention`` is a part of learning: a forward and a backward pass of 16 packed sequences of 50
to 80 tokens through the blocks. ``seconds`` are medians with the shortcut; ``ratio`` is the median of the time
without it divided by the time with it. Prints one JSON object a line.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import torch
from transformers import PreTrainedModel

from analysis.command import exit_status
from ray_l4.config.model import LoraConfig, ModelConfig
from ray_l4.learner import batched_engine, model_calls
from ray_l4.learner.batched_engine import BatchedEngine
from ray_l4.learner.dropout import use_cheap_masks
from ray_l4.learner.engine import Decoding, Prompt
from ray_l4.learner.models import arithmetic, build_model
from ray_l4.learner.packed_attention import as_transformers_attends
from ray_l4.learner.packing import run_packed, use_packed_attention
from ray_l4.learner.sequences import Sequences as Packed
from ray_l4.text.tokenizer import TaskTokenizer

_CPU = torch.device("cpu")
_ROWS, _TOKENS = 40, 40
_LENGTHS = [50 + 2 * index for index in range(16)]
_NO_END = -1
"""A token that is never chosen, so that all answers have the same length."""


def decode(model: PreTrainedModel) -> None:
    """Answer the prompts."""
    prompts = [Prompt(range(5 + row, 5 + row + _TOKENS), _TOKENS, 0) for row in range(_ROWS)]
    BatchedEngine().extend(model.eval(), prompts, Decoding(end=_NO_END))


def learn(model: PreTrainedModel) -> None:
    """Run the blocks forward and backward on packed sequences."""
    ids_1S = torch.arange(sum(_LENGTHS))[None] % model.config.vocab_size
    output = run_packed(model.train().base_model, ids_1S, Packed(_LENGTHS, _CPU))
    output.last_hidden_state.float().square().mean().backward()
    model.zero_grad(set_to_none=True)


def without(module: Any, name: str) -> Callable[[PreTrainedModel], AbstractContextManager[Any]]:
    """Return what makes a context in which a shortcut, a function that returns a context, does nothing."""
    return lambda _: mock.patch.object(module, name, lambda _model: nullcontext())


SHORTCUTS: dict[
    str, tuple[Callable[[PreTrainedModel], None], Callable[[PreTrainedModel], AbstractContextManager[Any]]]
] = {
    "contiguous_rows": (decode, without(model_calls, "_contiguous_rows")),
    "merged_token_rows": (decode, without(batched_engine, "token_rows_merged")),
    "float32_attention": (learn, lambda _: as_transformers_attends()),
}
"""Name -> what it is a part of, and what makes a context without it."""


def measure(name: str, model: PreTrainedModel, rounds: int) -> dict[str, Any]:
    """Return the figures of a shortcut; the first pair of rounds is not counted."""
    work, off = SHORTCUTS[name]

    def seconds(context: AbstractContextManager[Any]) -> float:
        with context:
            start = time.perf_counter()
            work(model)
            return time.perf_counter() - start

    pairs = [(seconds(nullcontext()), seconds(off(model))) for _ in range(rounds + 1)][1:]
    return {
        "bench": "adapters",
        "shortcut": name,
        "of": work.__name__,
        "rounds": rounds,
        "seconds": round(median(mine for mine, _ in pairs), 3),
        "ratio": round(median(plain / mine for mine, plain in pairs), 2),
    }


def build(name: str) -> tuple[PreTrainedModel, ModelConfig]:
    """Return the model with adapters, as a student has it, and its configuration."""
    linear = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = ModelConfig(
        name=name, dtype="bfloat16", precision="bfloat16", lora=LoraConfig(rank=16, alpha=32, targets=linear)
    )
    model = build_model(config, TaskTokenizer.pretrained(Path(name), ["a"], 0), 0)
    use_cheap_masks(model)
    if not use_packed_attention(model):
        raise SystemExit(f"{name}: its attention cannot be packed")
    return model, config


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL", help="folder or name of a model of Llama's shape")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="pairs of rounds (%(default)s)")
    given = parser.parse_args(arguments)

    def work() -> None:
        torch.set_num_threads(1)
        model, config = build(given.model)
        with arithmetic(config, _CPU):
            for name in SHORTCUTS:
                print(json.dumps(measure(name, model, given.rounds)), flush=True)

    return exit_status(work)


if __name__ == "__main__":
    sys.exit(main())
