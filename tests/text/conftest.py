"""A small byte-level tokeniser and a builder of examples, shared by the tests of this room."""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa
import pytest

from ray_l4.text.tokenizer import TaskTokenizer

TASKS = ("woz.en", "sst")
CORPUS = [
    "What is the change in state?",
    "i am looking for a cheap chinese restaurant in the north part of town",
    "food: chinese; price range: cheap; area: north",
    "is this review negative or positive? positive",
]


@pytest.fixture(scope="session")
def tokenizer() -> TaskTokenizer:
    return TaskTokenizer.trained(CORPUS * 5, vocabulary=320, tasks=TASKS, spare=2)


@pytest.fixture(scope="session")
def examples_of() -> Callable[..., pa.Table]:
    """Build a table of examples: ``examples_of((context, question, answer), ..., references=..., task=...)``."""

    def build(*rows: tuple[str, str, str], references: list[list[str]] | None = None, task: str = "sst") -> pa.Table:
        contexts, questions, answers = ([row[k] for row in rows] for k in range(3))
        return pa.table(
            {
                "context": pa.array(contexts, pa.string()),
                "question": pa.array(questions, pa.string()),
                "answer": pa.array(answers, pa.string()),
                "references": pa.array(references or [[a] for a in answers], pa.list_(pa.string())),
                "task": pa.array([task] * len(rows), pa.string()),
                "sample_id": pa.array([f"{task}-{i}" for i in range(len(rows))], pa.string()),
                "meta": pa.array(["{}"] * len(rows), pa.string()),
            }
        )

    return build
