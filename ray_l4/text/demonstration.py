"""Prompts that show the given answer to whoever predicts another one (REFERENCE.md#sdft)."""

from __future__ import annotations

import pyarrow as pa

from ray_l4.text.tokenizer import TaskTokenizer
from ray_l4.text.tokens import tokens_table

_BEFORE = "Here is an example of an answer to the question:"
_AFTER = "Now give an answer of your own."


def demonstrated(answered: pa.Table, given: pa.Table, tokenizer: TaskTokenizer, longest: int | None) -> pa.Table:
    """Return examples whose prompts also show the given answer, after context and question.

    Args:
        answered: examples with other answers (``TOKENS``).
        given: the same examples in the same order, with the given answers.
        longest: number of tokens of prompt and answer at most, with EOS: of a longer prompt the beginning is left out.
            None: no limit.
    """
    before, after = tokenizer.encode(_BEFORE), tokenizer.encode(_AFTER)
    start = list(tokenizer.answer_start)
    rows, lengths = [], []
    for own, shown in zip(answered.to_pylist(), given.to_pylist(), strict=True):
        asked, answer = own["ids"][: own["prompt_length"]], own["ids"][own["prompt_length"] :]
        demonstration = [*before, *shown["ids"][shown["prompt_length"] :], *after]
        prompt = [*asked[: len(asked) - len(start)], *demonstration, *start]
        room = None if longest is None else longest - len(answer) - 1
        prompt = prompt if room is None else prompt[max(0, len(prompt) - room) :]
        rows.append([*prompt, *answer])
        lengths.append(len(prompt))
    gens, tasks, sample_ids = (answered[name].to_pylist() for name in ("gen", "task", "sample_id"))
    return tokens_table(rows, lengths, gens, tasks, sample_ids, "answered")
