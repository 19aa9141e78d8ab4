"""Comparison of tokenisers: models can learn from each other only if they split text into the same tokens."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

from transformers import PreTrainedTokenizerBase


def difference(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase, texts: Sequence[str]) -> str | None:
    """Describe the first difference between two tokenisers; None if there is none.

    Compares the ids of their vocabularies, their end-of-sequence tokens, and the ids of ``texts``, because tokenisers
    with the same vocabulary can still split a text in different places.
    """
    mine, theirs = one.get_vocab(), other.get_vocab()
    differing = sorted(token for token in mine.keys() | theirs.keys() if mine.get(token) != theirs.get(token))
    if differing:
        token = differing[0]
        return (
            f"{len(differing)} of {len(mine.keys() | theirs.keys())} tokens differ, such as {token!r}, which "
            f"{_numbered(mine.get(token))} in one and {_numbered(theirs.get(token))} in the other"
        )
    if one.eos_token_id != other.eos_token_id:
        return f"the end-of-sequence token is {one.eos_token!r} in one and {other.eos_token!r} in the other"
    for text in texts:
        pieces = [base.convert_ids_to_tokens(_ids(base, text)) for base in (one, other)]
        if pieces[0] != pieces[1]:
            at = next(i for i, pair in enumerate(zip_longest(*pieces)) if pair[0] != pair[1])
            shown = [" ".join(own[at : at + 3]) for own in pieces]
            return f"they split text differently, with the same vocabulary: {shown[0]!r} and {shown[1]!r}"
    return None


def _ids(base: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids: list[int] = base(text, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    return ids


def _numbered(number: int | None) -> str:
    return "is missing" if number is None else f"is {number}"
