"""The text of an answer while its tokens arrive: only what later tokens cannot change any more is given out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ray_l4.text.cleanup import REPLACEMENTS

_UNSETTLED = max(len(old) for old, _ in REPLACEMENTS) + 1
"""Characters at the end that may still change: by the clean-up, or because a character's other bytes are to come."""


class AnswerText:
    """Text of tokens, up to the first of several stop strings."""

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str] = (), strip: bool = True) -> None:
        """``decode``: tokens to text. ``strip``: leave out white space at both ends."""
        self._decode, self._stop, self._strip = decode, tuple(stop), strip
        self._held = _UNSETTLED + max(map(len, self._stop), default=0)
        self._text = ""
        self.ids: list[int] = []
        """All tokens up to the stop string."""
        self.given = ""
        """What has been given out."""
        self.stopped = False
        """Whether a stop string was found; nothing is added after it."""

    def add(self, ids: Sequence[int]) -> str:
        """Add tokens; returns the new text that is settled."""
        self._take(ids)
        if self.stopped:
            return ""
        return self._give(self._text[: max(0, len(self._text) - self._held)])

    def add_last(self, ids: Sequence[int]) -> str:
        """Add the last tokens; returns all text that was not given out yet."""
        self._take(ids)
        return self._give(self._text)

    def _take(self, ids: Sequence[int]) -> None:
        """Add tokens, one by one where the text may have to end at one of them."""
        if not self._stop:
            self.ids += ids
            self._text = self._decoded()
            return
        for token in ids:
            if self.stopped:
                return
            self.ids.append(token)
            self._text = self._decoded()
            places = [place for stop in self._stop if (place := self._text.find(stop)) >= 0]
            if places:
                self._text, self.stopped = self._text[: min(places)], True

    def _decoded(self) -> str:
        text = self._decode(self.ids)
        return text.lstrip() if self._strip else text

    def _give(self, text: str) -> str:
        text = text.rstrip() if self._strip else text
        new = text[len(self.given) :]
        self.given += new
        return new
