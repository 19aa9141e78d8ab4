"""Answering prompts with a model, and generating pseudo-examples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from transformers import PreTrainedModel

from ray_l4.config.experiment import EvaluationConfig, ReplayConfig, TeacherConfig
from ray_l4.learner.decoding import continue_prompts
from ray_l4.seeds import derive
from ray_l4.text.test_sets import Scored, TestSet, answer_batches, score_answers
from ray_l4.text.tokenizer import TaskTokenizer
from ray_l4.text.tokens import sequence_lengths


def answer(
    model: PreTrainedModel, tokenizer: TaskTokenizer, tests: TestSet, config: EvaluationConfig, seed: int
) -> Scored:
    """Decode an answer to every prompt of ``tests`` and score them all."""
    decoded = decode_answers(model, tokenizer, tests, config, seed, answer_batches(tests, config))
    return score_answers(tests, [decoded[index] for index in range(len(tests.items))])


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
