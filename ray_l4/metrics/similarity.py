"""Similarity of column names by characters (REFERENCE.md#logical-form, step 3)."""

from __future__ import annotations

from collections import defaultdict


def common_subsequence(x: str, y: str) -> int:
    """Return the length of the longest common subsequence.

    Bit-parallel (Hyyrö 2004, "Bit-parallel LCS-length computation revisited"): one integer represents a row of the
    usual table; its zero bits mark the positions of ``y`` at which the length grows.
    """
    positions: defaultdict[str, int] = defaultdict(int)
    for index, character in enumerate(y):
        positions[character] |= 1 << index
    everywhere = (1 << len(y)) - 1
    row = everywhere
    for character in x:
        matched = row & positions[character]
        row = ((row + matched) | (row - matched)) & everywhere
    return len(y) - row.bit_count()


def common_substring(x: str, y: str) -> int:
    """Return the length of the longest substring of ``y`` that is also in ``x``, at the same place or a later one.

    So ``common_substring("xab", "ab")`` is 2, but ``common_substring("ab", "xab")`` is 0, as in the references' code.
    """
    longest = start = 0  # a window over x, which grows while y contains it in time and moves on otherwise
    while start + longest < len(x):
        end = start + longest + 1
        if x[start:end] in y[:end]:
            longest += 1
        else:
            start += 1
    return longest


def similarity(name: str, text: str) -> float:
    """Return LCS / longer length + longest common substring / 10^4 - shorter length / 10^8.

    LCS is the length of the longest common subsequence. The order of the two matters: see ``common_substring``.

    Raises:
        ZeroDivisionError: both strings are empty.
    """
    shorter, longer = sorted((len(name), len(text)))
    return common_subsequence(name, text) / longer + common_substring(name, text) / 1e4 - shorter / 1e8
