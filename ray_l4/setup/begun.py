"""What a run that goes on has in its directory, so that data which it has learned need not be read again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow as pa

from ray_l4.config.experiment import ExperimentConfig
from ray_l4.errors import DamagedError
from ray_l4.setup.facts import ItemFacts, recorded_facts
from ray_l4.setup.peer_teachers import finished_peers
from ray_l4.store.atomic import write_table
from ray_l4.store.general import WINDOWS
from ray_l4.store.run_directory import RunDirectory
from ray_l4.store.tables import read_table
from ray_l4.tasks.schema import EXAMPLES
from ray_l4.text.added_tokens import TASK_TOKENS_FILE
from ray_l4.text.general_text import KEPT, GeneralText, from_table, kept_table
from ray_l4.text.memory import REMEMBERED
from ray_l4.text.stored import STORED
from ray_l4.text.tokenizer import TaskTokenizer


@dataclass(frozen=True)
class Begun:
    """A run that goes on, as far as its data and tokeniser are concerned. The default is a run that begins."""

    first: int = 0
    """The first stage that may have to be learned: the data of those before it is not needed."""
    tokenizer: TaskTokenizer | None = None
    tests: Mapping[str, pa.Table] = field(default_factory=dict)
    """Task -> its test examples."""
    facts: Mapping[str, ItemFacts] = field(default_factory=dict)
    """Item of the stream -> what was recorded of its examples."""
    stored: Mapping[str, pa.Table] = field(default_factory=dict)
    """Item of the stream -> its training examples that stay (a ``STORED`` table)."""
    memory: Mapping[str, pa.Table] = field(default_factory=dict)
    """Item of the stream -> its training examples that can be shown (a ``REMEMBERED`` table)."""
    general: GeneralText | None = None
    """The general text that was measured last."""


@dataclass(frozen=True)
class Texts:
    """Examples as text, which the run directory keeps for a run that goes on."""

    tests: Mapping[str, pa.Table]
    """Task -> its test examples, as they were read."""
    memory: Mapping[str, pa.Table]
    """Item of the stream -> its training examples that can be shown (``REMEMBERED``); empty without retrieval."""


def begun(run: RunDirectory, first: int) -> Begun:
    """Return what is in a run directory. ``first``: see ``Begun``. Raises RunDirectoryError if a file is damaged.

    Only files of its own tasks count: an extension that was cut off may have left some of a task that it did not get.
    """
    tests = {task: kept_tests(run, task) for task in run.experiment().tasks}
    facts = recorded_facts(run.manifest(), str(run.path / "manifest.json"))
    stored = {item: _read(run.stored_examples(item), STORED) for item in facts}
    memory = {item: kept_memory(run, item) for item in facts}
    folder, general = run.path / "tokenizer", _read(run.path / WINDOWS, KEPT)
    return Begun(
        first=first,
        tokenizer=TaskTokenizer.load(folder, as_begun=True) if (folder / TASK_TOKENS_FILE).is_file() else None,
        tests={task: table for task, table in tests.items() if table is not None},
        facts=facts,
        stored={item: table for item, table in stored.items() if table is not None},
        memory={item: table for item, table in memory.items() if table is not None},
        general=None if general is None else from_table(general),
    )


def begun_with_peers(experiment: ExperimentConfig, own: Begun | None) -> Begun | None:
    """Return what a run has in its directory (``own``), beside what the run of its teachers has: tokeniser and data."""
    run = finished_peers(experiment)
    if run is None:
        return own
    theirs, own = begun(run, 0), own or Begun()
    return replace(
        own,
        tokenizer=own.tokenizer or theirs.tokenizer,
        tests={**theirs.tests, **own.tests},
        facts={**theirs.facts, **own.facts},
        memory={**theirs.memory, **own.memory},
        general=own.general or theirs.general,
    )


def kept_tests(run: RunDirectory, task: str) -> pa.Table | None:
    """Return the test examples of a task in a run directory; None if there are none. Raises DamagedError."""
    return _read(run.test_examples(task), EXAMPLES)


def kept_memory(run: RunDirectory, item: str) -> pa.Table | None:
    """Return the examples of an item that can be shown (``REMEMBERED``); None without any. Raises DamagedError."""
    return _read(run.memory_examples(item), REMEMBERED)


def record_general(run: RunDirectory, text: GeneralText | None) -> None:
    """Write the general text, if there is one, as tokens."""
    if text is not None:
        write_table(run.path / WINDOWS, kept_table(text))


def record_examples(run: RunDirectory, texts: Texts, stored: Mapping[str, pa.Table]) -> None:
    """Write the test examples of tasks, and the training examples of items that stay or can be shown.

    Those that the run has already stay as they are; what is there of others is of no use (``begun``).
    """
    known = run.experiment()
    for task, table in texts.tests.items():
        if task not in known.tasks or not run.test_examples(task).is_file():
            write_table(run.test_examples(task), table)
    for item, table in stored.items():
        if item not in known.items or not run.stored_examples(item).is_file():
            write_table(run.stored_examples(item), table)
    for item, table in texts.memory.items():
        if item not in known.items or not run.memory_examples(item).is_file():
            write_table(run.memory_examples(item), table)


def _read(path: Path, schema: pa.Schema) -> pa.Table | None:
    table = read_table(path, schema.names)
    if table is None:
        return None
    try:
        return table.select(schema.names).cast(schema)
    except (ValueError, pa.ArrowException) as error:
        raise DamagedError(f"{path}: damaged: {error}. Restore it from a copy.") from error
