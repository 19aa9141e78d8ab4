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
    """The longest sequences of a run, in tokens, and the sizes of its items."""

    trained: int
    """Longest training sequence that a model reads, pseudo-examples included, with its task token."""
    answer: int
    """Longest answer of a training example."""
    decoded: int
    """Longest sequence that an evaluator decodes: a test prompt with its answer, or a pseudo-example."""
    examples: Mapping[str, int]
    """Item of the stream -> number of its training examples."""


def read_lengths(experiment: ExperimentConfig) -> DataLengths:
    """Read and tokenise the data of an experiment (with ``methods.resolved``), and return its lengths.

    Raises DataError, ModelError or ConfigError if the data or the tokeniser is not there.
    """
    return lengths_of(prepare(experiment))


def lengths_of(setup: Setup) -> DataLengths:
    """Return the lengths of a prepared run."""
    tables = setup.training.values()
    test_sets = [tests for stage in range(len(setup.stages)) for tests in setup.tests_of(stage).values()]
    answered = max(
        min(int(sequence_lengths(tests.prompts).max()) + tests.max_new_tokens, tests.max_length) for tests in test_sets
    )
    generated = get_method(setup.experiment.method).replay == "generated"
    replayed = max((setup.replay_length(stage) for stage in range(1, len(setup.stages)) if generated), default=0)
    return DataLengths(
        # The last token of an LM sequence is a target alone; a pseudo-example that fills its length has none.
        trained=max(max(setup.longest_sequences.values()) - 1, replayed),
        answer=max(int((sequence_lengths(table) - table["prompt_length"].to_numpy()).max()) for table in tables),
        decoded=max(answered, replayed),
        examples={task: table.num_rows for task, table in setup.training.items()},
    )
