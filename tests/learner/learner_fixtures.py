"""Small models, data and learners for the tests of the learner room."""

from __future__ import annotations

import random

import pyarrow as pa

from ray_l4.config.experiment import ExperimentConfig
from ray_l4.learner.learner import Learner
from ray_l4.learner.models import build_model
from ray_l4.methods import get_method
from ray_l4.seeds import derive
from ray_l4.text.assembly import assemble
from ray_l4.text.replay import GeneratedSample, generated_table
from ray_l4.text.tokenizer import TaskTokenizer
from ray_l4.text.tokens import pooled

WORDS = [f"word{index}" for index in range(30)]


def examples(task: str, count: int, seed: int = 0) -> pa.Table:
    """Examples whose answer repeats a part of the context."""
    draw = random.Random(f"{task} {seed}")
    rows = []
    for index in range(count):
        context = draw.choices(WORDS, k=draw.randint(3, 12))
        answer = " ".join(context[: draw.randint(1, 3)])
        rows.append(
            {
                "context": " ".join(context),
                "question": f"how does {task} begin ?",
                "answer": answer,
                "references": [answer],
                "task": task,
                "sample_id": f"{task}-{index}",
                "meta": "",
            }
        )
    return pa.Table.from_pylist(rows)


def tokenizer(tasks: tuple[str, ...] = ("a", "b")) -> TaskTokenizer:
    """A byte-level BPE of the words above."""
    texts = [text for task in tasks for text in examples(task, 20)["context"].to_pylist()]
    return TaskTokenizer.trained([*texts, "how does a begin ?"], 400, list(tasks), 2)


def experiment(**changes: object) -> ExperimentConfig:
    """A tiny experiment; ``changes`` replaces whole sections."""
    sections: dict[str, object] = {
        "stream": ["a", "b"],
        "model": {"from_scratch": {"layers": 2, "width": 32, "heads": 2, "positions": 64, "dropout": 0.1}},
        "training": {"epochs": 2, "batch_size": 4},
        "optim": {"variant": "torch", "lr": 1e-3, "eps": 1e-8},
    }
    return ExperimentConfig.model_validate(sections | changes)


def tokens(tok: TaskTokenizer, current: int = 8, replayed: int = 3) -> pa.Table:
    """A second stage's table: examples of ``b``, and pseudo-examples of ``a``."""
    table, dropped = assemble(examples("b", current), tok, 64)
    assert not dropped
    samples = []
    for row in examples("a", replayed, seed=1).to_pylist():
        samples.append(
            GeneratedSample(tok.gen["a"], tuple(tok.encode(row["context"])), tuple(tok.encode(row["answer"])))
        )
    return pooled(table, generated_table(samples, tok, 1)) if samples else table


def peers(config: ExperimentConfig, tok: TaskTokenizer, method: str = "l4", count: int | None = None) -> list[Learner]:
    """Learners that have just been made."""
    row = get_method(method)
    graph = row.graph(count or row.peers)
    return [
        Learner(
            peer,
            build_model(
                config.model, tok, derive(config.seed, "init", *([peer] if config.peers.init == "own" else []))
            ),
            tok,
            config,
            row,
            graph,
        )
        for peer in range(graph.size)
    ]
