"""Lengths of examples of real tasks: measured on the data where it is, otherwise a sample that was measured before.

What a step costs depends on how long its sequences are and how unequal, not on what they say.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import ByteLevelBPETokenizer

from ray_l4.config.experiment import DataConfig
from ray_l4.config.stream import TaskConfig
from ray_l4.errors import ConfigError
from ray_l4.tasks.registry import load

Pair = tuple[int, int]
"""Tokens of an example (prompt with answer token, and answer), and those of the answer alone."""
GPT2_ENTRIES = 50_257
"""Vocabulary of GPT-2's tokeniser."""
_READ = 2_000
"""Examples of a task that are read to measure their lengths."""
_LONGEST = 1_000
"""Tokens; longer examples are cut, as a model of 1,024 positions requires."""

_SAMPLES: dict[str, tuple[list[int], list[int]]] = {
    "woz.en": (
        [10, 11, 12, 13, 13, 14, 14, 14, 15, 15, 18, 19, 20, 21, 22, 23, 24, 25, 26, 30, 31, 32, 33, 34, 40, 42],
        [1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 1, 2, 2, 5, 2, 4, 5, 5, 2, 4, 11, 5, 9, 9, 12, 12],
    ),
    "wikisql": (
        [95, 97, 100, 100, 101, 102, 103, 104, 105, 107, 107, 109, 110, 112, 115, 118, 118, 119, 121, 123, 124, 128],
        [12, 9, 12, 12, 12, 12, 11, 14, 9, 13, 16, 11, 14, 14, 16, 15, 21, 21, 16, 21, 16, 25],
    ),
    "e2enlg": (
        [41, 42, 48, 50, 53, 54, 56, 57, 58, 59, 60, 61, 65, 67, 70, 73, 74, 75, 75, 77, 78, 80, 81, 86, 88, 102],
        [14, 13, 14, 16, 17, 20, 21, 19, 25, 23, 24, 25, 19, 24, 32, 28, 33, 22, 26, 33, 35, 30, 32, 30, 35, 49],
    ),
    "cnn_dailymail": (
        [240, 342, 412, 426, 473, 525, 588, 673, 741, 758, 776, 784, 796, 799, 805, 819, 820, 836, 843, 847, 865, 897],
        [33, 64, 44, 51, 43, 35, 52, 90, 58, 50, 73, 74, 45, 48, 84, 64, 63, 52, 55, 60, 60, 65],
    ),
}
"""Task -> lengths of examples and of their answers, in tokens of GPT-2's tokeniser: every other one of 48 that were
drawn at random, in order of length. Those of a byte-level BPE of 3,000 entries trained on the same data differ by less
than a tenth, but for CNN/DailyMail."""


def real_lengths(tasks: Sequence[str], entries: int, data: Path | None = None) -> tuple[list[list[Pair]], bool]:
    """Return the lengths of some examples of each task, and whether they were measured just now.

    ``entries``: size of the vocabulary of the tokeniser. ``data``: folder with ``raw/`` and ``tokenizer/gpt2/``; by
    default the one that ``RAY_L4_DATA`` names. Raises ConfigError for an unknown task.
    """
    unknown = [task for task in tasks if task not in _SAMPLES]
    if unknown:
        raise ConfigError(f"--tasks: no lengths of {unknown[0]!r} are known; expected some of {', '.join(_SAMPLES)}")
    folder = data or (Path(os.environ["RAY_L4_DATA"]) if "RAY_L4_DATA" in os.environ else None)
    if folder is None:
        return [list(zip(*_SAMPLES[task], strict=True)) for task in tasks], False
    texts = [_texts(task, folder) for task in tasks]
    tokenizer = _tokenizer(entries, folder, [text for own in texts for pair in own for text in pair])
    return [[_pair(tokenizer, *own) for own in of_task] for of_task in texts], True


def _texts(task: str, folder: Path) -> list[tuple[str, str]]:
    """Read prompt and answer of some examples of a task."""
    table = load(TaskConfig(name=task, train=_READ), "train", DataConfig(raw=folder / "raw"))
    rows = table.slice(0, _READ).to_pylist()
    return [(f"{row['context']} {row['question']}", row["answer"]) for row in rows]


def _tokenizer(entries: int, folder: Path, texts: Sequence[str]) -> ByteLevelBPETokenizer:
    files = [folder / "tokenizer" / "gpt2" / name for name in ("vocab.json", "merges.txt")]
    if entries == GPT2_ENTRIES and all(file.is_file() for file in files):
        return ByteLevelBPETokenizer(*map(str, files))
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(texts, vocab_size=min(entries, GPT2_ENTRIES), show_progress=False)
    return tokenizer


def _pair(tokenizer: ByteLevelBPETokenizer, prompt: str, answer: str) -> Pair:
    of_prompt, of_answer = (len(tokenizer.encode(text).ids) for text in (prompt, answer))
    of_answer = max(1, min(of_answer, _LONGEST // 2))
    return min(of_prompt, _LONGEST - of_answer - 1) + 1 + of_answer, of_answer


def drawn(lengths: Sequence[Sequence[Pair]], count: int, seed: int) -> list[Pair]:
    """Draw ``count`` examples, as many of each task on average."""
    generator = np.random.default_rng(seed)
    tasks = generator.integers(len(lengths), size=count)
    return [lengths[task][int(generator.integers(len(lengths[task])))] for task in map(int, tasks)]
