"""Conversion between text and ids, in which the name of a special token is text like any other."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import groupby

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ray_l4.errors import DataError
from ray_l4.text.cleanup import clean_up


class TextIds:
    """Encoding and decoding with a tokeniser (REFERENCE.md#base-tokeniser). Immutable.

    Attributes:
        hf: the underlying Hugging Face tokeniser.
    """

    def __init__(self, hf: PreTrainedTokenizerBase, own: Collection[int], end: int) -> None:
        """Wrap ``hf``. ``own``: ids of the tokens that the project added to it. ``end``: the id that ends an answer."""
        self.hf = hf
        self._is_plain = _hands_on(hf)
        self._own = frozenset(own)
        self._reserved = frozenset({*self._own, end, *_special_ids(hf)})
        # Llama's tokenisers add the leading space themselves: a word then has the same ids at the start and inside.
        pair = self._ids(["a a"])[0]
        adds_space = pair[: len(pair) // 2] == pair[len(pair) // 2 :]
        self._lead = "" if adds_space else " "
        # They also remove the first space in decoding, which a word in front prevents.
        self._anchor = self.encode("a")
        self._anchor_text = self._text(self._anchor)

    def encode(self, text: str) -> list[int]:
        """Return the ids of the stripped text as a continuation, with one leading space; nothing for a blank text.

        Context, question and answer are each encoded like this, so their ids can be concatenated without a separator
        (REFERENCE.md#base-tokeniser). The name of a special or added token in the text is text, never that token; in
        the reference implementation it becomes the token. Raises DataError if the tokeniser cannot encode it as text.
        """
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return ``encode`` of every text, computed in one call."""
        encoded = self._plain_ids(texts)
        for text, ids in zip(texts, encoded, strict=True):
            if not self._reserved.isdisjoint(ids):
                raise DataError(f"the text {text[:60]!r} {self._as_token(ids)}. Remove it from the text.")
        return encoded

    def encode_generated(self, texts: Sequence[str]) -> list[list[int]]:
        """Return ``encode`` of texts that a model wrote, without what cannot be encoded as text."""
        return [[i for i in ids if i not in self._reserved] for ids in self._plain_ids(texts)]

    def why_unencodable(self, text: str) -> str | None:
        """Return why ``encode`` would raise DataError for a text; None if it would not."""
        ids = self._plain_ids([text])[0]
        return None if self._reserved.isdisjoint(ids) else self._as_token(ids)

    def reserved_names(self) -> list[str]:
        """List the names of all tokens that stand for something else than text, in the order of their ids."""
        return [str(name) for name in self.hf.convert_ids_to_tokens(sorted(self._reserved))]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the cleaned-up text of ``ids``, including special tokens (REFERENCE.md#base-tokeniser).

        One space precedes every added token; text keeps the leading space of its first word.
        """
        pieces = []
        for own, run in groupby(map(int, ids), key=self._own.__contains__):
            if own:
                pieces += [f" {token}" for token in self.hf.convert_ids_to_tokens(list(run))]
            else:
                pieces.append(self._text([*self._anchor, *run])[len(self._anchor_text) :])
        return clean_up("".join(pieces))

    def round_trip(self, text: str) -> str:
        """Return ``text`` encoded and decoded, neither cleaned up nor with the token for unknown words."""
        ids = self._plain_ids([text])[0]
        return str(self.hf.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _plain_ids(self, texts: Sequence[str]) -> list[list[int]]:
        led = [self._lead + stripped if (stripped := text.strip()) else "" for text in texts]
        different = list(dict.fromkeys(led))  # most tasks ask one question of all examples
        if len(different) == len(led):
            return self._ids(led)
        known = dict(zip(different, self._ids(different), strict=True))
        return [list(known[text]) for text in led]

    def _as_token(self, ids: Sequence[int]) -> str:
        found = next(i for i in ids if i in self._reserved)
        return f"contains {self.hf.convert_ids_to_tokens(found)!r}, which this tokeniser can only encode as a token"

    def _ids(self, texts: list[str]) -> list[list[int]]:
        if not texts:  # transformers fails on an empty batch
            return []
        # The first call of two sets the tokeniser as the second one needs it.
        whole = texts[:1] if self._is_plain else texts
        encoded = self.hf(
            whole,
            add_special_tokens=False,
            split_special_tokens=True,
            return_attention_mask=False,
            verbose=False,  # longer texts than the model's are truncated later, so a warning would mislead
        )
        ids: list[list[int]] = encoded["input_ids"]
        if len(texts) == len(whole):
            return ids
        # The same without the characters that each token stands for, which takes a third of the time.
        more = self.hf.backend_tokenizer.encode_batch_fast(texts[1:], add_special_tokens=False)
        return ids + [each.ids for each in more]

    def _text(self, ids: list[int]) -> str:
        return str(self.hf.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _hands_on(hf: PreTrainedTokenizerBase) -> bool:
    """Return whether ``hf`` gives a text to its Rust tokeniser as it is: few classes do more with it."""
    return (
        isinstance(hf, PreTrainedTokenizerFast)
        and type(hf)._encode_plus is PreTrainedTokenizerFast._encode_plus
        and type(hf).__call__ is PreTrainedTokenizerBase.__call__
    )


def _special_ids(hf: PreTrainedTokenizerBase) -> set[int]:
    """Return the ids of all special tokens but the one for unknown words, for which any text may stand."""
    marked = {number for number, token in hf.added_tokens_decoder.items() if token.special}
    return {*marked, *hf.all_special_ids} - {hf.unk_token_id}
