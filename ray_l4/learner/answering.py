"""Answering a test set with a model, and scoring the answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from transformers import PreTrainedModel

from ray_l4.config.experiment import EvaluationConfig, ReplayConfig, TeacherConfig
from ray_l4.learner.decoding import continue_prompts, in_chunks
from ray_l4.metrics.registry import METRICS, Item, item_scores, score
from ray_l4.seeds import derive
from ray_l4.text.assembly import assemble_prompts
from ray_l4.text.tokenizer import TaskTokenizer
from ray_l4.text.tokens import sequence_lengths

RAW_GOLD_METRICS = frozenset({"joint_goal_em", "lfem"})
"""Metrics whose gold strings are scored as they stand in the data (REFERENCE.md#decoding)."""


@dataclass(frozen=True)
class TestSet:
    """What it takes to score one task: prompts, in the order of the items they belong to."""

    __test__ = False  # not a test class, whatever its name suggests to pytest

    task: str
    metric: str
    prompts: pa.Table
    items: tuple[Item, ...]
    """Items without a prediction (empty strings)."""
    max_new_tokens: int
    max_length: int
    """Longest sequence, prompt and answer together."""


@dataclass(frozen=True)
class Scored:
    """A checkpoint's answers to one task and what they are worth."""

    values: dict[str, float]
    headline: str
    predictions: list[str]
    item_scores: list[float]
    """One per prediction, in percent."""


def build_test_set(
    examples: pa.Table, metric: str, tokenizer: TaskTokenizer, max_length: int, config: EvaluationConfig
) -> TestSet:
    """Prompts and gold answers of the first ``config.limit`` of one task's ``examples``.

    Raises DataError for a question that leaves no room for an answer, ModelError for a task without a token.
    """
    kept = examples.slice(0, config.limit) if config.limit else examples
    prompts, answer_length = assemble_prompts(kept, tokenizer, max_length, config.reserve)
    new_tokens = config.max_new_tokens or answer_length
    task = kept.column("task")[0].as_py()
    return TestSet(task, metric, prompts, build_items(kept, metric, tokenizer), new_tokens, max_length)


def build_items(examples: pa.Table, metric: str, tokenizer: TaskTokenizer) -> tuple[Item, ...]:
    """The gold side of a test set.

    For most metrics gold answers pass through the tokeniser like predictions do, so that both are cleaned alike.
    """
    rows = examples.select(["references", "sample_id", "meta"]).to_pylist()

    def gold(text: str) -> str:
        return text if metric in RAW_GOLD_METRICS else tokenizer.decode(tokenizer.encode(text)).strip()

    return tuple(Item("", tuple(gold(text) for text in r["references"]), r["sample_id"], r["meta"]) for r in rows)


def answer(
    model: PreTrainedModel, tokenizer: TaskTokenizer, tests: TestSet, config: EvaluationConfig, seed: int
) -> Scored:
    """Decode an answer to every prompt of ``tests`` and score them all."""
    decoded = decode_answers(model, tokenizer, tests, config, seed, answer_batches(tests, config))
    return score_answers(tests, [decoded[index] for index in range(len(tests.items))])


def answer_batches(tests: TestSet, config: EvaluationConfig) -> list[list[int]]:
    """Indices of the prompts that are decoded together: ``config.chunk`` of similar length.

    They are fixed, so that a result is the same wherever each of them is computed.
    """
    lengths = sequence_lengths(tests.prompts).tolist()
    by_length = sorted(range(len(lengths)), key=lambda index: (lengths[index], index))
    return [[by_length[position] for position in chunk] for chunk in in_chunks(len(lengths), config.chunk)]


def decode_answers(
    model: PreTrainedModel,
    tokenizer: TaskTokenizer,
    tests: TestSet,
    config: EvaluationConfig,
    seed: int,
    batches: Sequence[Sequence[int]],
) -> dict[int, str]:
    """Answers to the prompts in ``batches``, some of those that ``answer_batches`` gives, by the prompt's index.

    Where answers may be longer than the room kept for them (``evaluation.reserve``), a batch gets the room of its
    longest prompt.
    """
    answers: dict[int, str] = {}
    for members in batches:
        prompts = tests.prompts["ids"].take(pa.array(members)).to_pylist()
        room = tests.max_length - max(map(len, prompts))
        new = continue_prompts(
            model,
            tokenizer,
            prompts,
            max(1, min(tests.max_new_tokens, room)),
            top_k=config.top_k,
            seeds=[derive(seed, "answer", tests.task, index) for index in members],
            banned=tokenizer.task_tokens if config.ban_task_tokens else (),
        )
        answers.update((index, tokenizer.decode(tokens).strip()) for index, tokens in zip(members, new, strict=True))
    return answers


def score_answers(tests: TestSet, predictions: Sequence[str]) -> Scored:
    """What the answers to a whole test set are worth, in the order of its items."""
    items = [
        Item(prediction, item.references, item.sample_id, item.meta)
        for prediction, item in zip(predictions, tests.items, strict=True)
    ]
    headline = METRICS[tests.metric].headline
    return Scored(score(tests.metric, items), headline, list(predictions), item_scores(tests.metric, items))


def answer_training(
    model: PreTrainedModel,
    tokenizer: TaskTokenizer,
    tokens: pa.Table,
    max_length: int,
    config: TeacherConfig,
    seed: int,
    rows: range | None = None,
) -> list[str]:
    """A teacher's answers to the training examples in ``tokens`` (a ``TOKENS`` table), in their order (REFERENCE.md#seq-kd).

    rows: which of them to answer; all when not given. No answer is longer than the longest true one of the whole
    table, nor than ``max_length`` leaves room for beside its own prompt, so that it does not matter which rows are
    answered together.
    """
    lengths = tokens["prompt_length"].to_numpy()
    longest = int((sequence_lengths(tokens) - lengths).max())
    rows = range(tokens.num_rows) if rows is None else rows
    part = tokens.slice(rows.start, len(rows)).to_pylist()
    # A batch can only go on for as long as its longest prompt has room, so those with less than the rest go apart.
    limits = [max(1, min(longest, max_length - row["prompt_length"])) for row in part]
    answers = [""] * len(part)
    for limit in sorted(set(limits)):
        members = [index for index, own in enumerate(limits) if own == limit]
        new = continue_prompts(
            model,
            tokenizer,
            [part[index]["ids"][: part[index]["prompt_length"]] for index in members],
            limit,
            top_k=config.top_k,
            temperature=config.temperature,
            seeds=[derive(seed, part[index]["sample_id"]) for index in members],
        )
        for index, answer_ids in zip(members, new, strict=True):
            answers[index] = tokenizer.decode(answer_ids).strip()
    return answers


def generate_replay(
    model: PreTrainedModel,
    tokenizer: TaskTokenizer,
    gens: Sequence[int],
    seeds: Sequence[int],
    max_length: int,
    config: ReplayConfig,
) -> list[np.ndarray]:
    """Pseudo-examples, each begun from a task token: the token itself and what the model says after it (REFERENCE.md#replay)."""
    new = continue_prompts(
        model,
        tokenizer,
        [[gen] for gen in gens],
        max_length - 1,
        top_k=config.top_k,
        temperature=config.temperature,
        seeds=seeds,
        banned=tokenizer.task_tokens if config.ban_task_tokens else (),
    )
    return [np.asarray([gen, *tokens], dtype=np.int32) for gen, tokens in zip(gens, new, strict=True)]
