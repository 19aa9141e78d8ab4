"""Examples to token ids: tokenise, cut the context where needed, join (REFERENCE.md#assembly)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from ray_l4.errors import DataError
from ray_l4.text.tokenizer import TaskTokenizer
from ray_l4.text.tokens import tokens_table

SHOWN = 3


@dataclass(frozen=True)
class Dropped:
    """An example that cannot be used, and why."""

    sample_id: str
    reason: str


def assemble(examples: pa.Table, tokenizer: TaskTokenizer, max_length: int) -> tuple[pa.Table, list[Dropped]]:
    """Training sequences of ``examples`` as a ``TOKENS`` table, and the examples that do not fit.

    Only the context is cut, from its end and as much as needed, so that X_lm = GEN + ids has at most ``max_length``
    tokens. An example whose question and answer alone are longer is dropped (REFERENCE.md#assembly, #defects: the reference cuts
    its answer such that input and target no longer line up).

    Args:
        examples: columns context, question, answer, task, sample_id (strings).
        tokenizer: must know every task of ``examples``; ModelError otherwise.
        max_length: L, in tokens.
    """
    contexts, questions, answers = (_encoded(examples, column, tokenizer) for column in _TEXTS)
    tasks, sample_ids = examples["task"].to_pylist(), examples["sample_id"].to_pylist()
    rows, kept, dropped = [], [], []
    prompt_lengths = []
    for i, (context, question, answer) in enumerate(zip(contexts, questions, answers, strict=True)):
        prompt = [*question, tokenizer.ans]
        room = max_length - len(prompt) - len(answer) - 1
        if room < 0:
            dropped.append(Dropped(sample_ids[i], _too_long(len(question), len(answer), max_length)))
            continue
        prompt = context[:room] + prompt
        rows.append(prompt + answer)
        prompt_lengths.append(len(prompt))
        kept.append(i)
    tasks, sample_ids = [tasks[i] for i in kept], [sample_ids[i] for i in kept]
    gens = [tokenizer.gen_of(task) for task in tasks]
    return tokens_table(rows, prompt_lengths, gens, tasks, sample_ids, "real"), dropped


def with_answers(tokens: pa.Table, answers: Sequence[str], tokenizer: TaskTokenizer, max_length: int) -> pa.Table:
    """The same examples with other answers, as a ``TOKENS`` table (REFERENCE.md#seq-kd).

    tokens: what ``assemble`` gave. answers: one for each row; what does not fit into ``max_length`` is cut at its end.
    """
    lengths = tokens["prompt_length"].to_pylist()
    prompts = [ids[:length] for ids, length in zip(tokens["ids"].to_pylist(), lengths, strict=True)]
    encoded = tokenizer.encode_batch(answers)
    rows = [prompt + answer[: max_length - len(prompt) - 1] for prompt, answer in zip(prompts, encoded, strict=True)]
    gens, tasks, sample_ids = (tokens[name].to_pylist() for name in ("gen", "task", "sample_id"))
    return tokens_table(rows, lengths, gens, tasks, sample_ids, "real")


def assemble_prompts(
    examples: pa.Table,
    tokenizer: TaskTokenizer,
    max_length: int,
    reserve: int,
    answer_length: int | None = None,
) -> tuple[pa.Table, int]:
    """Evaluation prompts as a ``TOKENS`` table in the order of ``examples``, and the number of new tokens A.

    The context is cut so that min(A, reserve) new tokens fit after the prompt (REFERENCE.md#decoding). ``reserve=1`` is the
    reference, where an example with a long context gets an answer of one token.

    Args:
        examples: as for ``assemble``; references (list of strings) instead of answer where there are any.
        tokenizer: must know every task of ``examples``; ModelError otherwise.
        max_length: L, in tokens, of prompt and answer together.
        reserve: most tokens kept free for the answer, at least 1.
        answer_length: A; ``longest_answer`` when not given.

    Raises:
        DataError: a question alone leaves no room for an answer.
    """
    contexts, questions = (_encoded(examples, column, tokenizer) for column in _TEXTS[:2])
    tasks, sample_ids = examples["task"].to_pylist(), examples["sample_id"].to_pylist()
    if answer_length is None:
        answer_length = max(1, longest_answer(examples, tokenizer))
    reserved = min(answer_length, reserve)
    rooms = [max_length - len(question) - 1 - reserved for question in questions]
    unanswerable = [
        Dropped(sample_id, _too_long(len(question), reserved, max_length))
        for sample_id, question, room in zip(sample_ids, questions, rooms, strict=True)
        if room < 0
    ]
    where = f"the test set of {', '.join(sorted(set(tasks)))}"
    refuse_if_many(unanswerable, len(rooms), 0.0, where, advice="use a model with more positions or a smaller reserve")
    rows = [c[:room] + q + [tokenizer.ans] for c, q, room in zip(contexts, questions, rooms, strict=True)]
    gens = [tokenizer.gen_of(task) for task in tasks]
    return tokens_table(rows, [len(row) for row in rows], gens, tasks, sample_ids, "real"), answer_length


def longest_answer(examples: pa.Table, tokenizer: TaskTokenizer) -> int:
    """Tokens of the longest gold answer: all references of an example and one PAD between each two (REFERENCE.md#decoding)."""
    answers, references = examples["answer"].to_pylist(), examples["references"].to_pylist()
    gold = [several or [one] for several, one in zip(references, answers, strict=True)]
    lengths = iter([len(ids) for ids in tokenizer.encode_batch([text for texts in gold for text in texts])])
    return max((sum(next(lengths) for _ in texts) + len(texts) - 1 for texts in gold), default=0)


def refuse_if_many(
    dropped: Sequence[Dropped],
    total: int,
    max_fraction: float,
    where: str,
    advice: str = "use a model with more positions, or raise model.max_length or data.max_bad_fraction",
) -> None:
    """Raise DataError, showing the first few, if more than ``max_fraction`` of ``total`` examples were dropped."""
    if len(dropped) <= max_fraction * total:
        return
    shown = "".join(f"\n  {drop.sample_id}: {drop.reason}" for drop in dropped[:SHOWN])
    more = f"\n  ... and {len(dropped) - SHOWN} more" if len(dropped) > SHOWN else ""
    raise DataError(
        f"{len(dropped)} of {total} examples in {where} do not fit; at most {max_fraction:.1%} may be left out."
        f"{shown}{more}\nShorten them, {advice}."
    )


_TEXTS = ("context", "question", "answer")


def _encoded(examples: pa.Table, column: str, tokenizer: TaskTokenizer) -> list[list[int]]:
    return tokenizer.encode_batch(examples[column].to_pylist())


def _too_long(question: int, answer: int, max_length: int) -> str:
    return f"question of {question} and answer of {answer} tokens do not fit into {max_length} (with ANS and EOS)"
