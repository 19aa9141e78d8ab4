"""What a run records of the examples that it learns, which need not be there any more once they are learned."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from ray_l4.errors import RunDirectoryError
from ray_l4.store.begun_with import FINGERPRINT_KEY
from ray_l4.tasks.slices import slices_of
from ray_l4.text.test_sets import TestSet
from ray_l4.text.tokenizer import TaskTokenizer
from ray_l4.text.tokens import sequence_lengths

_DIGESTED = ("ids", "prompt_length", "gen")


@dataclass(frozen=True)
class ItemFacts:
    """Facts about the examples of one item of the stream."""

    training: int
    """Number of training examples."""
    validation: int
    """Number of validation examples."""
    longest: int
    """Length of the longest training sequence in tokens, with task token and end."""
    fingerprint: str
    """Digest of all tokens and gold answers: equal for equal data and tokeniser."""


_KEYS = {
    "training": "training_examples",
    "validation": "validation_examples",
    "longest": "longest_sequences",
    "fingerprint": FINGERPRINT_KEY,
}
"""Fact -> its key in the manifest, under which the facts of all items are."""


def facts_of(training: pa.Table, validation: pa.Table | None, tests: TestSet, tokenizer: TaskTokenizer) -> ItemFacts:
    """Return the facts about an item. ``tests``: the test set of its task."""
    tables = [training, tests.prompts, *([] if validation is None else [validation])]
    return ItemFacts(
        training=training.num_rows,
        validation=0 if validation is None else validation.num_rows,
        longest=longest_of(training, tokenizer),
        fingerprint=_fingerprint(tables, tests.items),
    )


def longest_of(training: pa.Table, tokenizer: TaskTokenizer) -> int:
    """Return the length of the longest training sequence in tokens, with task token and end."""
    return 1 + len(tokenizer.lm_end) + (int(sequence_lengths(training).max()) if training.num_rows else 0)


def facts_as_json(facts: Mapping[str, ItemFacts]) -> dict[str, dict[str, Any]]:
    """Return the entries of a manifest about the items of the stream."""
    return {key: {item: getattr(own, name) for item, own in facts.items()} for name, key in _KEYS.items()}


def recorded_facts(manifest: Mapping[str, Any], where: str) -> dict[str, ItemFacts]:
    """Return the facts in a manifest. ``where``: its file, for messages.

    Raises RunDirectoryError if the manifest has none: an earlier version of this package wrote it.
    """
    known: dict[str, Any] = {name: manifest.get(key) for name, key in _KEYS.items()}
    if not all(isinstance(values, dict) for values in known.values()):
        raise RunDirectoryError(
            f"{where}: damaged, or of an earlier version of ray-l4: it does not say enough about the data that was "
            "learned. Restore it, go on with the version that began the run, or start a new run."
        )
    items = set.intersection(*(set(values) for values in known.values()))
    return {item: ItemFacts(**{name: values[item] for name, values in known.items()}) for item in items}


def _fingerprint(tables: Iterable[pa.Table], items: Iterable[object]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for table in tables:
        for part in slices_of(table.select(_DIGESTED)):
            for column in _DIGESTED:
                digest.update(repr(part[column].to_pylist()).encode())
    for item in items:
        digest.update(repr(item).encode())
    return digest.hexdigest()
