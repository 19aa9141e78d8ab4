"""Test sets: prompts, gold answers, the batches that they are answered in, and the scores of answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from ray_l4.config.experiment import EvaluationConfig
from ray_l4.metrics.registry import METRICS, Item, item_scores, score
from ray_l4.text.assembly import assemble_prompts
from ray_l4.text.chunks import in_chunks
from ray_l4.text.tokenizer import TaskTokenizer
from ray_l4.text.tokens import sequence_lengths

RAW_GOLD_METRICS = frozenset({"joint_goal_em", "lfem"})
"""Metrics whose gold strings are scored as they stand in the data (REFERENCE.md#decoding)."""


@dataclass(frozen=True)
class TestSet:
    """One task's prompts, in the order of the items they belong to, and the items to score answers against."""

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
    """A checkpoint's answers to one task, with their scores."""

    values: dict[str, float]
    headline: str
    predictions: list[str]
    item_scores: list[float]
    """One per prediction, in percent."""


def build_test_set(
    examples: pa.Table, metric: str, tokenizer: TaskTokenizer, max_length: int, config: EvaluationConfig
) -> TestSet:
    """Build the prompts and gold answers of the first ``config.limit`` of one task's ``examples``.

    Raises DataError for a question that leaves no room for an answer, ModelError for a task without a token.
    """
    kept = examples.slice(0, config.limit) if config.limit else examples
    prompts, answer_length = assemble_prompts(kept, tokenizer, max_length, config.reserve)
    new_tokens = config.max_new_tokens or answer_length
    task = kept.column("task")[0].as_py()
    return TestSet(task, metric, prompts, build_items(kept, metric, tokenizer), new_tokens, max_length)


def build_items(examples: pa.Table, metric: str, tokenizer: TaskTokenizer) -> tuple[Item, ...]:
    """Build the items of a test set, without predictions.

    For most metrics gold answers pass through the tokeniser as predictions do, so that both are cleaned alike.
    """
    rows = examples.select(["references", "sample_id", "meta"]).to_pylist()

    def gold(text: str) -> str:
        return text if metric in RAW_GOLD_METRICS else tokenizer.decode(tokenizer.encode(text)).strip()

    return tuple(Item("", tuple(gold(text) for text in r["references"]), r["sample_id"], r["meta"]) for r in rows)


def answer_batches(tests: TestSet, config: EvaluationConfig) -> list[list[int]]:
    """Return the indices of the prompts that are decoded together: ``config.chunk`` of similar length.

    The batches are fixed, so a result is the same wherever each of them is computed.
    """
    lengths = sequence_lengths(tests.prompts).tolist()
    by_length = sorted(range(len(lengths)), key=lambda index: (lengths[index], index))
    return [[by_length[position] for position in chunk] for chunk in in_chunks(len(lengths), config.chunk)]


def score_answers(tests: TestSet, predictions: Sequence[str]) -> Scored:
    """Score the answers to a whole test set, given in the order of its items."""
    items = [
        Item(prediction, item.references, item.sample_id, item.meta)
        for prediction, item in zip(predictions, tests.items, strict=True)
    ]
    headline = METRICS[tests.metric].headline
    return Scored(score(tests.metric, items), headline, list(predictions), item_scores(tests.metric, items))
