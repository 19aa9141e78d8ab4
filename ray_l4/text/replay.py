"""Conversion of generated token ids to pseudo-examples, and their number per task (REFERENCE.md#replay)."""

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

Rejection = Literal[
    "no answer token",
    "several answer tokens",
    "no turn with an answer",
    "text after the answer",
    "a mark of the chat template in the answer",
]
"""Why generated ids are not a pseudo-example."""


@dataclass(frozen=True)
class PseudoExample:
    """The first token of a generated example (GEN), and the ids on either side of ANS (each may be empty).

    With a chat template, ``question`` holds all turns before the answer, without ``TaskTokenizer.answer_start``.
    """

    gen: int
    question: tuple[int, ...]
    answer: tuple[int, ...]


def parse(ids: Sequence[int], tokenizer: TaskTokenizer) -> PseudoExample | Rejection:
    """Parse generated ``ids``, the task token included, into a pseudo-example, or return why they are not one.

    With a chat template they are valid if their last turn is the assistant's, with no mark of the template inside and
    nothing after its end. A real example's LM sequence parses into that example.
    """
    chat = tokenizer.chat
    if chat is None:
        return parse_generated(ids, tokenizer)
    gen, *rest = map(int, ids)
    end = tokenizer.lm_end[-1]
    rest = rest[: rest.index(end)] if end in rest else rest
    middle = _last(rest, tokenizer.answer_start)
    if middle is None:
        return "no turn with an answer"
    answer = rest[middle + len(tokenizer.answer_start) :]
    if tokenizer.eos in answer[:-1]:
        return "text after the answer"
    answer = answer[:-1] if answer[-1:] == [tokenizer.eos] else answer
    if chat.markers.intersection(answer):
        return "a mark of the chat template in the answer"
    return PseudoExample(gen, tuple(rest[:middle]), tuple(answer))


def _last(ids: Sequence[int], wanted: tuple[int, ...]) -> int | None:
    """Return where ``wanted`` occurs in ``ids`` for the last time; None if it does not."""
    starts = range(len(ids) - len(wanted), -1, -1)
    return next((start for start in starts if tuple(ids[start : start + len(wanted)]) == wanted), None)


def parse_generated(ids: Sequence[int], special: SpecialIds) -> PseudoExample | Rejection:
    """Parse generated ``ids`` (first token included) into a pseudo-example, or return why they are not one.

    Everything from the first EOS on is cut off. The rest is valid if it contains ANS exactly once after the first
    token: the question precedes ANS (the context is empty) and the answer follows it. Texts without EOS, empty parts,
    tokens of other tasks and duplicates are kept (REFERENCE.md#replay). This works on ids, where the reference
    implementation splits a string of decimals (REFERENCE.md#defects).
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
    examples: Sequence[PseudoExample], tasks: Sequence[str], tokenizer: TaskTokenizer, stage: int
) -> pa.Table:
    """Return pseudo-examples as a ``TOKENS`` table (REFERENCE.md#replay).

    Row i has the id ``replay-<stage>-<i>`` and keeps its own GEN.

    Args:
        tasks: the task that each pseudo-example was generated for.

    Raises:
        ModelError: a pseudo-example starts with a token that belongs to no task.
    """
    strangers = sorted({example.gen for example in examples} - set(tokenizer.gen.values()))
    if strangers:
        raise ModelError(
            f"Generated examples start with tokens that belong to no task: ids {strangers}; tasks: {tokenizer.gen}."
        )
    return tokens_table(
        ids=[[*example.question, *tokenizer.answer_start, *example.answer] for example in examples],
        prompt_lengths=[len(example.question) + len(tokenizer.answer_start) for example in examples],
        gens=[example.gen for example in examples],
        tasks=list(tasks),
        sample_ids=[f"replay-{stage}-{i}" for i in range(len(examples))],
        origin="generated",
    )


def num_replayed_per_task(ratio: float, num_new: int, num_previous: int) -> int:
    """Return the number of replayed examples per previous task (REFERENCE.md#replay).

    ceil(ratio * num_new) is divided evenly and the remainder dropped. ``ratio`` is read as a decimal number: 0.07 of
    100 is 7, where floating-point arithmetic would give 8.
    """
    if num_previous == 0:
        return 0
    return math.ceil(Fraction(str(ratio)) * num_new) // num_previous
