"""A tokeniser's chat template: conversations as an instruct model knows them, in token ids."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import cached_property
from itertools import takewhile

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from ray_l4.errors import ModelError
from ray_l4.tasks.chat import Message
from ray_l4.text.rendered import Encoded, Rendered, RenderedEncoder

_DAY = date(2024, 7, 26)
"""The day for templates that print today's: the tokens of a run must not depend on when it was started."""

_CODES = (*"aAbBCdDeFGHIjmMpRSTuUVwWyY", "-d", "-e", "-H", "-I", "-j", "-m", "-M", "-S")
"""What templates may ask of it, as for ``strftime``."""

_FIXED_DAY = (
    "{% macro strftime_now(format) %}{{ format"
    + "".join(f" | replace('%{code}', '{_DAY.strftime('%' + code)}')" for code in _CODES)
    + " }}{% endmacro %}"
)
"""Put before a template, it replaces the function that Transformers gives templates to print the current day."""

_MARK = re.compile("\ue000(\\d+)\ue001")
"""Stands for the text of message N while a template is rendered."""

_ASSISTANT = "assistant"


class RefusedConversationError(ValueError):
    """A conversation that the template cannot render; the message says why."""


@dataclass(frozen=True)
class _Shape:
    """What the template writes around turns of certain roles, and around the answer to them."""

    parts: tuple[str, ...]
    """The last two stand before and after the answer; the former ends as the template's own prompt does."""
    blanks: str
    """Between that prompt and an answer; they belong to the answer."""


@dataclass
class ChatTemplate:
    """Rendering and encoding with the template of ``hf``."""

    hf: PreTrainedTokenizerBase
    _shapes: dict[tuple[str, ...], _Shape] = field(default_factory=dict)

    def prompt(self, turns: Sequence[Message]) -> Rendered:
        """Render the turns up to the question, and the template's beginning of the answer.

        If the template knows no system prompt (Gemma's), that stands before the first question, a blank line between.
        Raises RefusedConversationError if the template does not render such a conversation.
        """
        if not self._takes_system:
            turns = _folded(turns)
        shape = self._shape(tuple(turn["role"] for turn in turns))
        return Rendered(shape.parts[:-1], tuple(turn["content"] for turn in turns))

    def encode(self, rendered: Sequence[Rendered]) -> list[Encoded]:
        """Return the tokens of rendered texts: the tokeniser's own, but for special tokens in the data's text."""
        return self._encoder.encode(rendered)

    def encode_answers(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text as the answer after a prompt, without the token that ends it."""
        shape = self._shape(("user",))
        opening = shape.parts[-2]
        rendered = [Rendered((opening + shape.blanks, ""), (text.strip(),)) for text in texts]
        answers = []
        for encoded in self.encode(rendered):
            inside = [start >= len(opening) for start, _ in encoded.spans]
            answers.append([token for token, own in zip(encoded.ids, inside, strict=True) if own])
        return answers

    @cached_property
    def answer_start(self) -> tuple[int, ...]:
        """Ids between the end of the question and the answer. Raises ModelError if they depend on the question."""
        found = set()
        for probe in ("a", "Is it 1?"):
            rendered = self._probe(probe)
            (encoded,) = self.encode([rendered])
            end = rendered.starts()[-1] + len(probe)
            found.add(tuple(t for t, span in zip(encoded.ids, encoded.spans, strict=True) if span[0] >= end))
        if len(found) != 1 or () in found:
            raise ModelError(
                "The chat template of the model puts no text of its own between a question and its answer, so replayed "
                "examples could not be divided into the two. Set model.chat_template: none."
            )
        return found.pop()

    @cached_property
    def answer_end(self) -> int:
        """The id that ends an assistant's turn: the template's first special token after it, or the tokeniser's EOS."""
        self._probe("a")
        closing = self._encoder.of_template(self._shape(("user",)).parts[-1])
        return next((token for token in closing if token in self._encoder.special_ids), int(self.hf.eos_token_id))

    @cached_property
    def beginning(self) -> tuple[int, ...]:
        """Ids with which every conversation begins, with a system prompt or without: they need not be predicted."""
        begun = []
        for roles in (("user",), ("system", "user")):
            try:
                rendered = self.prompt([{"role": role, "content": "a"} for role in roles])
            except RefusedConversationError:
                continue
            (encoded,) = self.encode([rendered])
            first = rendered.starts()[0]
            begun.append([t for t, span in zip(encoded.ids, encoded.spans, strict=True) if span[1] <= first])
        common = takewhile(lambda ids: len(set(ids)) == 1, zip(*begun, strict=False))
        return tuple(ids[0] for ids in common)

    @cached_property
    def markers(self) -> frozenset[int]:
        """Ids of the special tokens that the template itself writes."""
        text = "".join(self._shape(("user", _ASSISTANT, "user")).parts)
        return self._encoder.special_ids.intersection(self._encoder.of_template(text))

    @cached_property
    def _encoder(self) -> RenderedEncoder:
        return RenderedEncoder(self.hf)

    @cached_property
    def _takes_system(self) -> bool:
        try:
            self._shape(("system", "user"))
        except RefusedConversationError:
            return False
        return True

    def _probe(self, question: str) -> Rendered:
        try:
            return self.prompt([{"role": "user", "content": question}])
        except RefusedConversationError as error:
            raise ModelError(
                f"The chat template of the model does not render a question and its answer: {error}. "
                "Set model.chat_template: none, or correct the template in the model's folder."
            ) from error

    def _shape(self, roles: tuple[str, ...]) -> _Shape:
        """Return the template's texts around the turns with these roles and around the answer to them."""
        if roles not in self._shapes:
            *before, opening, closing = self._split((*roles, _ASSISTANT), prompt=False)
            asked = self._split(roles, prompt=True)[-1]
            # Some templates add an empty thought to a given answer, which then belongs to the prompt; others prompt for
            # a thought and drop it from answers.
            added = opening.removeprefix(asked) if opening.startswith(asked) else ""
            if added.strip():
                self._shapes[roles] = _Shape((*before, opening, closing), "")
            else:
                self._shapes[roles] = _Shape((*before, asked, closing), added)
        return self._shapes[roles]

    def _split(self, roles: Sequence[str], prompt: bool) -> list[str]:
        """Render marks in place of the contents, and return the texts around them."""
        marked = [{"role": role, "content": f"\ue000{number}\ue001"} for number, role in enumerate(roles)]
        try:
            text = self.hf.apply_chat_template(
                marked,
                chat_template=_FIXED_DAY + str(self.hf.get_chat_template()),
                tokenize=False,
                add_generation_prompt=prompt,
            )
        except (TemplateError, TypeError, ValueError) as error:
            raise RefusedConversationError(f"the chat template refuses {_listed(roles)}: {error}") from error
        pieces = _MARK.split(str(text))
        if pieces[1::2] != [str(number) for number in range(len(roles))]:
            raise RefusedConversationError(f"the chat template does not render each of {_listed(roles)} once, in order")
        return pieces[::2]


def _folded(turns: Sequence[Message]) -> Sequence[Message]:
    """Return a conversation in which the system prompt is part of the first question."""
    if [turn["role"] for turn in turns[:2]] != ["system", "user"]:
        return turns
    system, question, *rest = turns
    content = "\n\n".join(turn["content"] for turn in (system, question) if turn["content"])
    return [{"role": "user", "content": content}, *rest]


def _listed(roles: Iterable[str]) -> str:
    return f"a conversation of {', '.join(roles)}"
