"""An example of the inbox, its id, and its line in a segment."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

from ray_l4.config.text import is_blank
from ray_l4.errors import DataError

_DIGEST_BYTES = 16


@dataclass(frozen=True)
class Example:
    """A question about a context, and its right answers."""

    context: str
    question: str
    answers: tuple[str, ...]
    """The first one is learned."""
    given: str | None = None
    """The model's answer that was corrected, or found right."""
    source: str = ""
    """Where the example came from: ``feedback``, or the name of a file."""
    when: str = ""
    """Local time with its offset, as in ``2026-01-31 12:00:00+00:00``."""
    meta: str = ""
    """As in ``tasks/schema.py``."""

    @cached_property
    def id(self) -> str:
        """Digest of context, question and answers: equal for texts that differ only in how they are written down.

        Those are spaces around them, line endings, and the composition of letters in Unicode.
        """
        parts = [_normalised(text).encode() for text in (self.context, self.question, *self.answers)]
        whole = b"".join(len(part).to_bytes(8, "big") + part for part in parts)
        return hashlib.blake2b(whole, digest_size=_DIGEST_BYTES).hexdigest()

    def check(self) -> None:
        """Raise DataError if the example cannot be stored or learned."""
        for name, text in (("context", self.context), ("question", self.question), ("given", self.given or "")):
            _check_text(name, text)
        if is_blank(self.context + self.question):
            raise DataError("context and question are both blank; give at least one of them.")
        if not self.answers:
            raise DataError("the answer is missing.")
        for answer in self.answers:
            _check_text("answer", answer)
            if is_blank(answer):
                raise DataError("the answer is blank; write what would have been right.")

    def to_line(self) -> str:
        """Return the example as a line of JSON without its end."""
        answer = self.answers[0] if len(self.answers) == 1 else list(self.answers)
        values = {"id": self.id, "context": self.context, "question": self.question, "answer": answer}
        others = {"given": self.given, "source": self.source, "when": self.when, "meta": self.meta}
        return json.dumps(values | {name: value for name, value in others.items() if value}, ensure_ascii=False)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Example:
        """Return the example of a line. Raises KeyError or TypeError if it is none."""
        answer = values["answer"]
        answers = (answer,) if isinstance(answer, str) else tuple(answer)
        others = {name: values[name] for name in ("given", "source", "when", "meta") if name in values}
        return cls(values["context"], values["question"], answers, **others)


def now() -> str:
    """Return the time as ``Example.when`` has it."""
    return datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")


def _normalised(text: str) -> str:
    return unicodedata.normalize("NFC", text.replace("\r\n", "\n").strip())


def _check_text(name: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{name} contains a lone surrogate at character {error.start}, which no text has.") from None
