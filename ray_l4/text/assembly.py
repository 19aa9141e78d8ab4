"""Conversion of examples to token ids: tokenise, truncate the context if needed, join (REFERENCE.md#assembly)."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from ray_l4.errors import DataError
from ray_l4.tasks.slices import slices_of
from ray_l4.text.memory import DEMONSTRATIONS
from ray_l4.text.prompts import Dropped, Prompt, encode_answers, encode_prompts
from ray_l4.text.tokenizer import TaskTokenizer
from ray_l4.text.tokens import TOKENS, concatenated, tokens_table

_KEPT = ("ids", "prompt_length", "gen", "task", "sample_id")
"""Columns of an example that remain with another answer, ``ids`` up to the answer."""
SHOWN = 3
"""Number of dropped examples quoted in a message."""


def assemble(examples: pa.Table, tokenizer: TaskTokenizer, max_length: int) -> tuple[pa.Table, list[Dropped]]:
    """Return the training sequences of ``examples`` as a ``TOKENS`` table, and the examples that do not fit.

    Only the context is truncated, at its end and no more than needed, so that the LM sequence (X_lm = GEN + ids) has
    at most ``max_length`` tokens; of a conversation the oldest turns are left out first. An example whose question and
    answer alone are longer is dropped (REFERENCE.md#assembly, #defects: the reference implementation truncates the
    answer so that input and target no longer line up).

    Args:
        examples: columns context, question, answer, task, sample_id and, from chat data, meta (strings).
        tokenizer: must know every task of ``examples``.
        max_length: L, in tokens.

    Raises:
        DataError: a text contains the name of a special token that cannot be encoded as text.
        ModelError: the tokeniser has no token for a task.
    """
    tables: list[pa.Table] = []
    dropped: list[Dropped] = []
    for part in slices_of(examples):
        answers = encode_answers(part["answer"].to_pylist(), tokenizer)
        room = [len(answer) for answer in answers]
        tables.append(_sequences(part, tokenizer, max_length, answers, room, dropped).select(TOKENS.names))
    return concatenated(*tables), dropped


def with_answers(tokens: pa.Table, answers: Sequence[str], tokenizer: TaskTokenizer, max_length: int) -> pa.Table:
    """Return the same examples with other answers, as a ``TOKENS`` table (REFERENCE.md#seq-kd).

    Args:
        tokens: the table that ``assemble`` returned.
        answers: one per row, truncated at the end to fit into ``max_length``.
        tokenizer: the one that ``tokens`` were made with.
        max_length: L, in tokens.
    """
    tables, start, ends = [], 0, len(tokenizer.lm_end)
    for part in slices_of(tokens):
        given, start = answers[start : start + part.num_rows], start + part.num_rows
        ids, lengths, gens, tasks, sample_ids = (part[name].to_pylist() for name in _KEPT)
        prompts = [row[:length] for row, length in zip(ids, lengths, strict=True)]
        encoded = zip(prompts, encode_answers(given, tokenizer, generated=True), strict=True)
        rows = [prompt + answer[: max_length - len(prompt) - ends] for prompt, answer in encoded]
        tables.append(tokens_table(rows, lengths, gens, tasks, sample_ids, "real"))
    return concatenated(*tables)


def assemble_prompts(
    examples: pa.Table,
    tokenizer: TaskTokenizer,
    max_length: int,
    reserve: int,
    answer_length: int | None = None,
) -> tuple[pa.Table, int]:
    """Return evaluation prompts as a ``TOKENS`` table in the order of ``examples``, and the number of new tokens A.

    If examples have demonstrations, a column ``DEMONSTRATIONS`` names those that are in the prompts.

    The context is truncated so that min(A, reserve) new tokens fit after the prompt (REFERENCE.md#decoding).
    ``reserve=1`` is the reference implementation, in which an example with a long context gets a one-token answer.

    Args:
        examples: as for ``assemble``, with references (a list of strings) in place of answer where there are any.
        tokenizer: must know every task of ``examples``.
        max_length: L, in tokens, of prompt and answer together.
        reserve: largest number of tokens kept free for the answer, at least 1.
        answer_length: A; ``longest_answer`` by default.

    Raises:
        DataError: a question leaves no room for an answer.
        ModelError: the tokeniser has no token for a task.
    """
    if answer_length is None:
        answer_length = max(1, longest_answer(examples, tokenizer))
    tables: list[pa.Table] = []
    unanswerable: list[Dropped] = []
    for part in slices_of(examples):
        room = [min(answer_length, reserve)] * part.num_rows
        tables.append(_sequences(part, tokenizer, max_length, None, room, unanswerable))
    where = f"the test set of {', '.join(sorted(examples['task'].unique().to_pylist()))}"
    advice = "use a model with more positions or a smaller reserve"
    refuse_if_many(unanswerable, examples.num_rows, 0.0, where, advice)
    return concatenated(*tables), answer_length


def longest_answer(examples: pa.Table, tokenizer: TaskTokenizer) -> int:
    """Return the number of tokens of the longest gold answer (REFERENCE.md#decoding).

    An example's gold answer consists of all its references, with one PAD between each two.
    """
    longest = 0
    for part in slices_of(examples):
        answers, references = part["answer"].to_pylist(), part["references"].to_pylist()
        gold = [several or [one] for several, one in zip(references, answers, strict=True)]
        lengths = iter([len(ids) for ids in encode_answers([text for texts in gold for text in texts], tokenizer)])
        longest = max([longest, *(sum(next(lengths) for _ in texts) + len(texts) - 1 for texts in gold)])
    return longest


def refuse_if_many(
    dropped: Sequence[Dropped],
    total: int,
    max_fraction: float,
    where: str,
    advice: str = "use a model with more positions, or raise model.max_length or data.max_bad_fraction",
) -> None:
    """Raise DataError, with the first few examples, if more than ``max_fraction`` of ``total`` were dropped.

    Args:
        where: the data, for the message.
        advice: how to make the examples fit, after "Shorten them, ".
    """
    if len(dropped) <= max_fraction * total:
        return
    shown = "".join(f"\n  {drop.sample_id}: {drop.reason}" for drop in dropped[:SHOWN])
    more = f"\n  ... and {len(dropped) - SHOWN} more" if len(dropped) > SHOWN else ""
    raise DataError(
        f"{len(dropped)} of {total} examples in {where} do not fit; at most {max_fraction:.1%} may be dropped."
        f"{shown}{more}\nShorten them, {advice}."
    )


def _sequences(
    part: pa.Table,
    tokenizer: TaskTokenizer,
    max_length: int,
    answers: Sequence[list[int]] | None,
    room: Sequence[int],
    dropped: list[Dropped],
) -> pa.Table:
    """Return the sequences of a few examples, and add those that do not fit to ``dropped``.

    ``answers``: their ids, None for prompts alone. ``room``: tokens that each example needs after the prompt, without
    the end of a sequence.
    """
    ends = 0 if answers is None else len(tokenizer.lm_end)
    tasks, sample_ids = part["task"].to_pylist(), part["sample_id"].to_pylist()
    rows, prompt_lengths, kept, shown = [], [], [], []
    for i, prompt in enumerate(encode_prompts(part, tokenizer)):
        fitted = _fitted(prompt, sample_ids[i], room[i], ends, max_length, tokenizer)
        if isinstance(fitted, Dropped):
            dropped.append(fitted)
            continue
        rows.append(fitted.ids if answers is None else fitted.ids + answers[i])
        prompt_lengths.append(len(fitted.ids))
        shown.append(fitted.shown)
        kept.append(i)
    tasks, sample_ids = [tasks[i] for i in kept], [sample_ids[i] for i in kept]
    gens = [tokenizer.gen_of(task) for task in tasks]
    table = tokens_table(rows, prompt_lengths, gens, tasks, sample_ids, "real")
    if DEMONSTRATIONS not in part.column_names:
        return table
    return table.append_column(DEMONSTRATIONS, pa.array(shown, pa.list_(pa.string())))


def _fitted(
    prompt: Prompt, sample_id: str, answer: int, ends: int, max_length: int, tokenizer: TaskTokenizer
) -> Prompt | Dropped:
    """Return a prompt beside which ``answer`` and ``ends`` further tokens fit, or why there is none."""
    fitted = prompt.within(max_length - answer - ends)
    if fitted is not None:
        return fitted
    question = prompt.fixed - len(tokenizer.answer_start)
    marks = "ANS and EOS" if tokenizer.chat is None else "the chat template's own"
    return Dropped(
        sample_id, f"question of {question} and answer of {answer} tokens exceed {max_length} tokens (with {marks})"
    )
