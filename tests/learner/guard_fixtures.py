"""Stage runs of a second stage with guards, by default without dropout and clipping."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from ray_l4.learner.guards import ImportanceGuard
from ray_l4.learner.learner import Learner
from ray_l4.learner.stage_run import StageRun
from ray_l4.text.assembly import assemble
from tests.learner import learner_fixtures as small

STRENGTH = 20.0


def experiment(dropout: float = 0.0, max_grad_norm: float = 1e9, **regulariser: Any) -> Any:
    return small.experiment(
        model={"from_scratch": {"layers": 1, "width": 32, "heads": 2, "positions": 64, "dropout": dropout}},
        training={"epochs": 2, "batch_size": 3, "max_grad_norm": max_grad_norm},
        regulariser={"weight": STRENGTH} | regulariser,
    )


def table(task: str, count: int) -> pa.Table:
    tok = small.tokenizer()
    return assemble(small.examples(task, count), tok, 64)[0]


def begun(method: str, config: Any = None, memory: pa.Table | None = None, peer: int = 0) -> StageRun:
    """Begin a second stage with weights that differ from the initial ones."""
    learner = small.unlike(small.peers(config or experiment(), small.tokenizer(), method, peer + 1))[peer]
    return learner.begin_stage(1, table("b", 6), memory)


def importance_guard(run: StageRun) -> ImportanceGuard:
    """Return the guard of a run whose method is ewc or mas."""
    assert isinstance(run.learner, Learner)
    assert isinstance(run.learner.guard, ImportanceGuard)
    return run.learner.guard


def answer_logits(model: Any, row: dict[str, Any], tok: Any) -> tuple[Tensor, Tensor]:
    """Return logits and targets of one example's answer and EOS, in evaluation mode."""
    logits = model(input_ids=torch.tensor([row["ids"]])).logits[0, row["prompt_length"] - 1 :]
    return logits, torch.tensor([*row["ids"][row["prompt_length"] :], tok.eos])
