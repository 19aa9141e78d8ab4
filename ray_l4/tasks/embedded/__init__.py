"""Three small tasks that a seeded grammar writes: a lifelong stream without any data file.

``mini.woz``, ``mini.sql`` and ``mini.rest`` have the formats and metrics of WOZ, WikiSQL and RNNLG, a vocabulary of
fewer than 300 words together, and answers that follow from the context, so that a small model trained from scratch
can learn each in about a minute of CPU time, while their different answer formats make it forget.

A split is decided by the context alone: a hash of (``DataConfig.seed``, context) gives one context in eight to test,
one to dev and the others to train. So splits never share a context, and any number of examples can be drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from random import Random

from ray_l4.seeds import derive
from ray_l4.tasks.embedded import rest, sql, woz
from ray_l4.tasks.embedded.grammar import Keep
from ray_l4.tasks.rows import BadRecords, Row, Split
from ray_l4.tasks.source import Source

TRAIN = 600
"""Training examples of each task unless a number is asked for."""
TEST = 100
"""Test and dev examples, likewise."""

GRAMMARS: dict[str, Callable[[Random, Keep], Iterator[Row]]] = {
    "mini.woz": woz.rows,
    "mini.sql": sql.rows,
    "mini.rest": rest.rows,
}
"""Endless streams of examples whose contexts the filter keeps."""

PARTS = 8
SPLIT_OF_PART: dict[int, Split] = {0: "test", 1: "dev"}


def read(source: Source, bad: BadRecords) -> Iterator[Row]:
    """As many examples as the task asks for; a larger number continues a smaller one."""
    default = TRAIN if source.split == "train" else TEST
    count = source.wanted if isinstance(source.wanted, int) else default
    seed, name = source.data.seed, source.task.name
    generator = Random(derive(seed, "grammar", name, source.split))

    def keep(context: str) -> bool:
        return split_of(seed, context) == source.split

    return islice(GRAMMARS[name](generator, keep), count)


def split_of(seed: int, context: str) -> Split:
    """The split to which a context belongs."""
    return SPLIT_OF_PART.get(derive(seed, "split", context) % PARTS, "train")
