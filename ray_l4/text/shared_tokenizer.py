"""Whether several pretrained models can learn from each other: they have to cut text into the same tokens."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

from transformers import PreTrainedTokenizerBase


def difference(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase, texts: Sequence[str]) -> str | None:
    """What differs between two tokenisers, in words; None if nothing does.

    That is the ids of their vocabularies, the end-of-sequence token, and the ids of ``texts``: two tokenisers with one
    vocabulary may still cut a text in different places.
    """
    mine, theirs = one.get_vocab(), other.get_vocab()
    differing = sorted(token for token in mine.keys() | theirs.keys() if mine.get(token) != theirs.get(token))
    if differing:
        token = differing[0]
        return (
            f"{len(differing)} of {len(mine.keys() | theirs.keys())} tokens differ, such as {token!r}, which "
            f"{_numbered(mine.get(token))} in the one and {_numbered(theirs.get(token))} in the other"
        )
    if one.eos_token_id != other.eos_token_id:
        return f"the end-of-sequence token is {one.eos_token!r} in the one and {other.eos_token!r} in the other"
    for text in texts:
        pieces = [base.convert_ids_to_tokens(_ids(base, text)) for base in (one, other)]
        if pieces[0] != pieces[1]:
            at = next(i for i, pair in enumerate(zip_longest(*pieces)) if pair[0] != pair[1])
            cut = [" ".join(own[at : at + 3]) for own in pieces]
            return f"with the same vocabulary they cut text differently: {cut[0]!r} in the one, {cut[1]!r} in the other"
    return None


def _ids(base: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids: list[int] = base(text, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    return ids


def _numbered(number: int | None) -> str:
    return "is missing" if number is None else f"is {number}"
