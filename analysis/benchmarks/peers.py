"""Peers that have learned real data for a while, since figures about untrained ones would mean nothing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_l4.config.experiment import ExperimentConfig
from ray_l4.errors import ConfigError
from ray_l4.learner.learner import Learner
from ray_l4.learner.model_config import sequence_limit
from ray_l4.learner.models import build_model
from ray_l4.methods import get_method
from ray_l4.methods.copying import changed
from ray_l4.seeds import derive
from ray_l4.tasks.registry import load
from ray_l4.text.assembly import assemble, refuse_if_many
from ray_l4.text.tokenizer import TaskTokenizer
from ray_l4.text.tokens import concatenated, sequence_lengths


@dataclass(frozen=True)
class Trained:
    """Trained peers, and batches to measure them on."""

    learners: list[Learner]
    learned: pa.Table
    """Tokens of the examples that they have learned."""
    batches: list[pa.Table]
    """Tokens of examples that no peer has learned, as many in each as in a step."""


def trained(
    experiment: ExperimentConfig, tokenizer: TaskTokenizer, *, peers: int, steps: int, positions: int, batches: int
) -> Trained:
    """Let ``peers`` teach each other for ``steps`` on the pooled tasks of the experiment's stream.

    A step has so many examples that all heads together have about ``positions`` distilled positions.
    Raises ConfigError, DataError or ModelError if the experiment cannot be carried out.
    """
    examples = _examples(experiment, tokenizer)
    size = max(1, round(positions * examples.num_rows / _num_positions(examples)))
    learned = examples.num_rows - size * batches
    if learned < size:
        raise ConfigError(
            f"{batches} batches of {size} examples to measure, and one to learn from, were asked for, but there are "
            f"{examples.num_rows} examples in all; ask for more examples, or for fewer batches or positions"
        )
    training = changed(experiment.training, batch_size=size, epochs=-(-steps * size // learned))
    experiment = changed(experiment, training=training)
    learners = [_learner(experiment, tokenizer, peer) for peer in range(peers)]
    seen = examples.slice(0, learned).combine_chunks()
    _teach_each_other(learners, seen, steps)
    unseen = [examples.slice(first, size).combine_chunks() for first in range(learned, examples.num_rows, size)]
    return Trained(learners, seen, unseen)


def _examples(experiment: ExperimentConfig, tokenizer: TaskTokenizer) -> pa.Table:
    """Load the training examples of all tasks as tokens, shuffled."""
    longest = sequence_limit(experiment.model)
    tables = []
    for task in experiment.stream:
        examples = load(task, "train", experiment.data)
        tokens, dropped = assemble(examples, tokenizer, longest)
        refuse_if_many(dropped, examples.num_rows, experiment.data.max_bad_fraction, f"task {task.name}, train")
        tables.append(tokens)
    together = concatenated(*tables)
    order = np.random.default_rng(derive(experiment.seed, "benchmark")).permutation(together.num_rows)
    return together.take(pa.array(order)).combine_chunks()


def _num_positions(tokens: pa.Table) -> int:
    """Count the positions of both heads: the answer and its end; the whole text and its end."""
    lengths = sequence_lengths(tokens)
    return int((2 * lengths + 2).sum() - pc.sum(tokens["prompt_length"]).as_py())


def _learner(experiment: ExperimentConfig, tokenizer: TaskTokenizer, peer: int) -> Learner:
    names = ("init",) if experiment.peers.init == "shared" else ("init", peer)
    model = build_model(experiment.model, tokenizer, derive(experiment.seed, *names))
    return Learner(peer, model, tokenizer, experiment, get_method(experiment.method))


def _teach_each_other(learners: list[Learner], tokens: pa.Table, steps: int) -> None:
    runs = [learner.begin_stage(0, tokens) for learner in learners]
    for step in range(steps):
        sent = [run.forward(step).targets() for run in runs]
        for peer, run in enumerate(runs):
            run.backward(step, [targets for teacher, targets in enumerate(sent) if teacher != peer])
