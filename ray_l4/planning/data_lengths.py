"""Lengths that occur in the data of a run, which bound its batches more tightly than the positions of its model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ray_l4.config.experiment import ExperimentConfig
from ray_l4.methods import get_method
from ray_l4.setup.setup import Setup, prepare
from ray_l4.text.tokens import sequence_lengths


@dataclass(frozen=True)
class DataLengths:
    """The longest sequences of a run, in tokens, and the sizes of its tasks."""

    trained: int
    """Longest training sequence, pseudo-examples included, with its task token."""
    answer: int
    """Longest answer of a training example."""
    decoded: int
    """Longest sequence that an evaluator decodes: a test prompt with its answer, or a pseudo-example."""
    examples: Mapping[str, int]
    """Task -> number of its training examples."""


def read_lengths(experiment: ExperimentConfig) -> DataLengths:
    """Read and tokenise the data of an experiment (with ``methods.resolved``), and return its lengths.

    Raises DataError, ModelError or ConfigError if the data or the tokeniser is not there.
    """
    return lengths_of(prepare(experiment))


def lengths_of(setup: Setup) -> DataLengths:
    """Return the lengths of a prepared run."""
    tables = setup.training.values()
    trained = max(int(sequence_lengths(table).max()) for table in tables) + 1
    prompts = {task: int(sequence_lengths(tests.prompts).max()) for task, tests in setup.tests.items()}
    answered = max(min(prompts[task] + tests.max_new_tokens, tests.max_length) for task, tests in setup.tests.items())
    replayed = _replayed(setup, trained)
    return DataLengths(
        trained=max(trained, replayed),
        answer=max(int((sequence_lengths(table) - table["prompt_length"].to_numpy()).max()) for table in tables),
        decoded=max(answered, replayed),
        examples={task: table.num_rows for task, table in setup.training.items()},
    )


def _replayed(setup: Setup, trained: int) -> int:
    """Return the length of the longest pseudo-example: as long as ``replay.max_length`` allows, by default as long as
    the longest training sequence; 0 if none are generated."""
    if get_method(setup.experiment.method).replay != "generated" or len(setup.stages) < 2:
        return 0
    return min(setup.experiment.replay.max_length or trained, setup.max_length)
