"""Test sets: prompts, gold answers, batches of prompts, and scores of answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from operator import itemgetter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ray_l4.config.experiment import EvaluationConfig
from ray_l4.metrics.registry import METRICS, Item, item_scores, score
from ray_l4.tasks.slices import slices_of
from ray_l4.text.assembly import assemble_prompts
from ray_l4.text.chunks import in_chunks
from ray_l4.text.memory import DEMONSTRATIONS
from ray_l4.text.rows import Rows
from ray_l4.text.tokenizer import TaskTokenizer
from ray_l4.text.tokens import TOKENS, sequence_lengths

RAW_GOLD_METRICS = frozenset({"joint_goal_em", "lfem"})
"""Metrics whose gold answers are scored exactly as in the data (REFERENCE.md#decoding)."""
LONGEST_KEPT = 1000
"""Largest number of characters kept of a context or question for people who read the answers. The files of answers hold
these texts once for each checkpoint, and some contexts are whole articles."""


_ITEMS = pa.schema([("references", pa.list_(pa.string())), ("sample_id", pa.string()), ("meta", pa.string())])
_ASKED = ("context", "question")


@dataclass(frozen=True)
class TestSet:
    """One task's prompts, and the items to score answers against, in the same order."""

    __test__ = False  # despite its name, not a test class for pytest

    task: str
    metric: str
    prompts: pa.Table
    items: Sequence[Item]
    """Items with empty predictions."""
    max_new_tokens: int
    max_length: int
    """Longest sequence of prompt and answer together, in tokens."""
    reserved: int = 1
    """Number of tokens kept free for the answer where a long context was cut."""
    asked: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """The start of every example's ``context`` and ``question``, in the order of the items."""
    shown: Sequence[Sequence[str]] = ()
    """Names of the demonstrations in every example's prompt, the least similar first; empty without any memory."""


@dataclass(frozen=True)
class Scored:
    """A checkpoint's answers to one task, with their scores."""

    values: dict[str, float]
    headline: str
    predictions: list[str]
    item_scores: list[float]
    """Score of each prediction, in percent."""


def build_test_set(
    examples: pa.Table,
    metric: str,
    tokenizer: TaskTokenizer,
    max_length: int,
    config: EvaluationConfig,
    answer_length: int | None = None,
) -> TestSet:
    """Build the prompts and gold answers of the first ``config.limit`` of one task's ``examples``.

    ``answer_length``: the expected length of an answer, in tokens; that of the longest gold answer if not given.

    Raises DataError if a question leaves no room for an answer, ModelError if the task has no token.
    """
    kept = examples.slice(0, config.limit) if config.limit else examples
    prompts, answer_length = assemble_prompts(kept, tokenizer, max_length, config.reserve, answer_length)
    new_tokens = config.max_new_tokens or answer_length
    task = kept.column("task")[0].as_py()
    return TestSet(
        task=task,
        metric=metric,
        prompts=prompts.select(TOKENS.names),
        items=build_items(kept, metric, tokenizer),
        max_new_tokens=new_tokens,
        max_length=max_length,
        reserved=min(answer_length, config.reserve),
        asked={name: Rows(pa.table({name: _starts(kept.column(name))}), itemgetter(name)) for name in _ASKED},
        shown=prompts[DEMONSTRATIONS].to_pylist() if DEMONSTRATIONS in prompts.column_names else (),
    )


def build_items(examples: pa.Table, metric: str, tokenizer: TaskTokenizer) -> Rows[Item]:
    """Build the items of a test set, with empty predictions.

    For most metrics, gold answers are encoded and decoded, so that they are cleaned like predictions.
    """
    tables = []
    for part in slices_of(examples):
        texts = [text for several in part["references"].to_pylist() for text in several]
        if metric not in RAW_GOLD_METRICS:
            texts = [tokenizer.decode(ids).strip() for ids in tokenizer.encode_batch(texts)]
        left = iter(texts)
        gold = [list(islice(left, len(several))) for several in part["references"].to_pylist()]
        columns = [gold, part["sample_id"].to_pylist(), part["meta"].to_pylist()]
        tables.append(pa.table(columns, schema=_ITEMS))
    return Rows(pa.concat_tables(tables), _item)


def _item(row: Mapping[str, Any]) -> Item:
    return Item("", tuple(row["references"]), row["sample_id"], row["meta"])


def answer_batches(tests: TestSet, config: EvaluationConfig) -> list[list[int]]:
    """Divide the prompts into batches of ``config.chunk`` with similar lengths. Returns their indices.

    The batches are fixed, so results do not depend on which evaluator decodes a batch.
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


def _starts(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    cut = pc.binary_join_element_wise(pc.utf8_slice_codeunits(texts, 0, LONGEST_KEPT), "…", " ")
    return pc.if_else(pc.greater(pc.utf8_length(texts), LONGEST_KEPT), cut, texts)
