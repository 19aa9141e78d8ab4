"""Rendered conversations in token ids. Text from the data is never read as a special token, whatever it contains."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from transformers import PreTrainedTokenizerBase

_BLANKS = r"\s*"


@dataclass(frozen=True)
class Encoded:
    """Token ids of a rendered text, and the half-open range of characters that each of them stands for."""

    ids: list[int]
    spans: list[tuple[int, int]]

    def within(self, start: int, stop: int) -> range:
        """Return the positions of the tokens that lie in the characters ``start`` to ``stop``."""
        inside = [position for position, span in enumerate(self.spans) if start <= span[0] < span[1] <= stop]
        return range(inside[0], inside[-1] + 1) if inside else range(0)


@dataclass(frozen=True)
class Rendered:
    """Text of the template and of the data in turns: ``parts`` has one text more than ``contents``."""

    parts: tuple[str, ...]
    contents: tuple[str, ...]

    def pieces(self) -> Iterator[tuple[str, bool]]:
        """Yield the texts in order, each with whether it is the template's."""
        for part, content in zip(self.parts, (*self.contents, None), strict=True):
            yield part, True
            if content is not None:
                yield content, False

    @property
    def text(self) -> str:
        return "".join(text for text, _ in self.pieces())

    def starts(self) -> list[int]:
        """Return where each of the contents starts in ``text``, in characters."""
        return list(accumulate(len(text) for text, _ in self.pieces()))[:-1:2]


@dataclass
class RenderedEncoder:
    """Encoding of rendered texts with ``hf``."""

    hf: PreTrainedTokenizerBase

    def encode(self, rendered: Sequence[Rendered]) -> list[Encoded]:
        """Return the tokens of rendered texts: the tokeniser's own, but for special tokens in the data's text."""
        plain = [each for each in rendered if not self._names_special(each)]
        together = iter(self._tokens([each.text for each in plain], split_special=False))
        return [self._piecewise(each) if self._names_special(each) else next(together) for each in rendered]

    def of_template(self, text: str) -> list[int]:
        """Return the ids of text that the template writes, its special tokens among them."""
        (encoded,) = self._tokens([text], split_special=False)
        return encoded.ids

    @cached_property
    def special_ids(self) -> frozenset[int]:
        return frozenset(number for number, token in self.hf.added_tokens_decoder.items() if token.special)

    def _tokens(self, texts: Sequence[str], split_special: bool) -> list[Encoded]:
        if not texts:  # transformers fails on an empty batch
            return []
        given = self.hf(
            list(texts),
            add_special_tokens=False,
            split_special_tokens=split_special,
            return_attention_mask=False,
            return_offsets_mapping=True,
            verbose=False,
        )
        return [Encoded(*each) for each in zip(given["input_ids"], given["offset_mapping"], strict=True)]

    def _names_special(self, rendered: Rendered) -> bool:
        texts = [*rendered.contents, *map(self._normalised, rendered.contents)]
        return any(map(self._special_pattern.search, texts))

    def _piecewise(self, rendered: Rendered) -> Encoded:
        """Encode a text with the name of a special token in the data: special tokens are looked for in the template."""
        ids: list[int] = []
        spans: list[tuple[int, int]] = []
        for text, special, start in self._runs(rendered):
            (encoded,) = self._tokens([text], split_special=not special)
            ids += encoded.ids
            spans += [(start + first, start + last) for first, last in encoded.spans]
        return Encoded(ids, spans)

    def _runs(self, rendered: Rendered) -> Iterator[tuple[str, bool, int]]:
        """Yield the special tokens of the template and all text between two of them, each with where it starts."""
        run, position = "", 0
        for text, own in rendered.pieces():
            for number, piece in enumerate(self._special_pattern.split(text) if own else [text]):
                if number % 2:  # the pattern's only group: a special token of the template
                    if run:
                        yield run, False, position - len(run)
                    yield piece, True, position
                    run = ""
                else:
                    run += piece
                position += len(piece)
        if run:
            yield run, False, position - len(run)

    @cached_property
    def _normalised(self) -> Callable[[str], str]:
        """Return a text as the tokeniser looks for special tokens in it: some only appear once it is normalised."""
        normalizer = self.hf.backend_tokenizer.normalizer
        late = any(token.special and token.normalized for token in self.hf.added_tokens_decoder.values())
        return str if normalizer is None or not late else normalizer.normalize_str

    @cached_property
    def _special_pattern(self) -> re.Pattern[str]:
        """A special token's name, with the blanks that the tokeniser takes with it."""
        tokens = sorted(self.hf.added_tokens_decoder.values(), key=lambda token: -len(token.content))
        names = [
            "".join((_BLANKS if token.lstrip else "", re.escape(token.content), _BLANKS if token.rstrip else ""))
            for token in tokens
            if token.special
        ]
        return re.compile(f"({'|'.join(names)})")
