"""Generated token ids to training examples, and how many of them a task gets (REFERENCE.md#replay)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import pyarrow as pa

from ray_l4.errors import ModelError
from ray_l4.text.tokenizer import TaskTokenizer
from ray_l4.text.tokens import SpecialIds, tokens_table

Rejection = Literal["no answer token", "several answer tokens"]


@dataclass(frozen=True)
class PseudoExample:
    """A pseudo-example: the token it was started from, and the ids on either side of ANS (each may be empty)."""

    gen: int
    question: tuple[int, ...]
    answer: tuple[int, ...]


def parse_generated(ids: Sequence[int], special: SpecialIds) -> PseudoExample | Rejection:
    """The pseudo-example in generated ``ids`` (starting token included), or why it is none.

    What follows the first EOS is cut. The rest is valid if ANS stands in it exactly once after the first token;
    what precedes it is the question (the context is empty), what follows the answer. Samples without EOS, empty
    parts, foreign task tokens and duplicates are kept (REFERENCE.md#replay). Works on ids, where the reference splits a string of
    decimals (REFERENCE.md#defects).
    """
    gen, *rest = map(int, ids)
    if special.eos in rest:
        rest = rest[: rest.index(special.eos)]
    match rest.count(special.ans):
        case 0:
            return "no answer token"
        case 1:
            middle = rest.index(special.ans)
            return PseudoExample(gen, tuple(rest[:middle]), tuple(rest[middle + 1 :]))
        case _:
            return "several answer tokens"


def generated_table(
    samples: Sequence[PseudoExample], tasks: Sequence[str], tokenizer: TaskTokenizer, stage: int
) -> pa.Table:
    """Pseudo-examples as a ``TOKENS`` table; row i is called ``replay-<stage>-<i>`` and keeps its own GEN (REFERENCE.md#replay).

    ``tasks``: what each sample was meant to be an example of.

    Raises:
        ModelError: a sample started from a token that belongs to no task.
    """
    strangers = sorted({sample.gen for sample in samples} - set(tokenizer.gen.values()))
    if strangers:
        raise ModelError(f"Generated samples start with tokens of no task: ids {strangers}; tasks: {tokenizer.gen}.")
    return tokens_table(
        ids=[[*sample.question, tokenizer.ans, *sample.answer] for sample in samples],
        prompt_lengths=[len(sample.question) + 1 for sample in samples],
        gens=[sample.gen for sample in samples],
        tasks=list(tasks),
        sample_ids=[f"replay-{stage}-{i}" for i in range(len(samples))],
        origin="generated",
    )


def num_replayed_per_task(ratio: float, num_new: int, num_previous: int) -> int:
    """Pseudo-examples per previous task: ceil(ratio * num_new) shared evenly, the remainder left out (REFERENCE.md#replay).

    ``ratio`` is taken as the decimal number it is written as: 0.07 of 100 is 7, where floats would make it 8.
    """
    if num_previous == 0:
        return 0
    return math.ceil(Fraction(str(ratio)) * num_new) // num_previous
