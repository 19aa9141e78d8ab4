"""Answers that a student gives to the current questions while it learns (REFERENCE.md#on-policy)."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import numpy as np

from ray_l4.learner.batch_rows import positions_of
from ray_l4.learner.decoding import continue_prompts
from ray_l4.learner.engine import Decoding
from ray_l4.learner.models import arithmetic
from ray_l4.methods import peer_seed
from ray_l4.seeds import derive
from ray_l4.text.tokens import tokens_table

if TYPE_CHECKING:
    import pyarrow as pa

    from ray_l4.learner.peer_model import PeerModel
    from ray_l4.learner.steps import Steps

_TOP_K = 256
"""Answers are sampled from so many most likely tokens, at temperature 1: all that a trained model considers, whatever
the size of the vocabulary."""


def own_answers(learner: PeerModel, steps: Steps, stage: int, step: int) -> pa.Table | None:
    """Return the current examples of a step with answers sampled from the student (``TOKENS``, origin ``answered``).

    None in a step in which the given answers bear the distillation (``distillation.on_policy``), which is the same for
    all students, or if the batch has only replayed examples. Answers are sampled without dropout, and have at most as
    many tokens as the longest given answer of the stage, and the model has positions for.
    """
    experiment = learner.experiment
    if not experiment.distillation.on_policy:
        return None
    chosen = np.random.default_rng(derive(experiment.seed, "on-policy", stage, step)).random()
    if chosen >= experiment.distillation.on_policy:
        return None
    examples = steps.current_examples(step, learner.peer)
    if not examples.num_rows:
        return None
    rows = examples.to_pylist()
    prompts = [row["ids"][: row["prompt_length"]] for row in rows]
    seed, positions = peer_seed(experiment, learner.peer), positions_of(learner.model) or sys.maxsize
    with arithmetic(experiment.model, learner.device):
        new = continue_prompts(
            learner.model,
            learner.tokenizer,
            prompts,
            [min(steps.longest_answer, positions - len(prompt)) for prompt in prompts],
            Decoding(_TOP_K),
            seeds=[derive(seed, "own answer", learner.peer, stage, step, index) for index in range(len(rows))],
        )
    return tokens_table(
        [prompt + answer for prompt, answer in zip(prompts, new, strict=True)],
        [row["prompt_length"] for row in rows],
        [row["gen"] for row in rows],
        [row["task"] for row in rows],
        [row["sample_id"] for row in rows],
        "answered",
    )
