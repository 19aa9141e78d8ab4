"""Prompts as token ids: context, question and ANS, or a conversation in the model's chat template.

This is the only place that knows how a prompt is put together; a prompt also knows how to become shorter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import dropwhile

import pyarrow as pa

from ray_l4.tasks.chat import Message, history, user_turn
from ray_l4.text.chat_template import ChatTemplate, Encoded, RefusedConversationError, Rendered
from ray_l4.text.memory import DEMONSTRATIONS, Demonstration, as_text, shown_names
from ray_l4.text.tokenizer import TaskTokenizer


@dataclass(frozen=True)
class Dropped:
    """An example that does not fit, and why."""

    sample_id: str
    reason: str


@dataclass(frozen=True)
class Prompt:
    """A prompt, and what of it can be left out if it is too long."""

    ids: list[int]
    cut: range
    """Positions of the ids that can be left out, from the last one on: those of the context."""
    later: Callable[[], Prompt] | None = None
    """The same prompt without its oldest turns or least similar demonstration; None if there are none to leave out."""
    shown: tuple[str, ...] = ()
    """Names of its demonstrations (``text/memory.py``), the least similar first."""

    def within(self, limit: int) -> Prompt | None:
        """Return the prompt with at most ``limit`` ids and as much as fits; None if nothing fits.

        Demonstrations are left out first, the least similar one before others, then the oldest turns, then the end of
        the context.
        """
        prompt = self._without_turns(limit)
        surplus = max(0, len(prompt.ids) - limit)
        if surplus > len(prompt.cut):
            return None
        stop = prompt.cut.stop - surplus
        ids = prompt.ids[:stop] + prompt.ids[prompt.cut.stop :]
        return Prompt(ids, range(prompt.cut.start, stop), prompt.later, prompt.shown)

    @property
    def fixed(self) -> int:
        """The number of ids that remain when everything is left out that can be."""
        shortest = self._without_turns(0)
        return len(shortest.ids) - len(shortest.cut)

    def _without_turns(self, limit: int) -> Prompt:
        prompt = self
        while len(prompt.ids) > limit and prompt.later is not None:
            prompt = prompt.later()
        return prompt


def why_refused(example: Mapping[str, str], tokenizer: TaskTokenizer) -> str | None:
    """Return why the chat template refuses an example's conversation; None if it does not, or if there is none."""
    if tokenizer.chat is None:
        return None
    try:
        tokenizer.chat.prompt(_turns(example)[0])
    except RefusedConversationError as error:
        return f"{error}; set model.chat_template: none, or change the conversation (remove its system prompt)"
    return None


def encode_prompts(examples: pa.Table, tokenizer: TaskTokenizer) -> list[Prompt]:
    """Return the prompt of every example, up to where its answer starts.

    ``examples``: columns context, question and, from chat data, meta (strings); those with demonstrations have them in
    a column ``DEMONSTRATIONS``. Raises RefusedConversationError if the chat template refuses one (``why_refused``).
    """
    if tokenizer.chat is not None:
        return _conversations(examples, tokenizer.chat)
    contexts, questions = (tokenizer.encode_batch(examples[name].to_pylist()) for name in ("context", "question"))
    prompts = [
        Prompt([*context, *question, tokenizer.ans], range(len(context)))
        for context, question in zip(contexts, questions, strict=True)
    ]
    if DEMONSTRATIONS not in examples.column_names:
        return prompts
    return [
        _after(shown, tokenizer.encode_batch([as_text(each) for each in shown]), prompt)
        for shown, prompt in zip(examples[DEMONSTRATIONS].to_pylist(), prompts, strict=True)
    ]


def encode_answers(texts: Sequence[str], tokenizer: TaskTokenizer, *, generated: bool = False) -> list[list[int]]:
    """Return the ids of answers as they follow a prompt, without the token that ends them.

    ``generated``: whether a model wrote them, so that what cannot be encoded as text is left out. Otherwise it raises
    DataError.
    """
    if tokenizer.chat is not None:
        return tokenizer.chat.encode_answers(texts)
    return tokenizer.encode_generated(texts) if generated else tokenizer.encode_batch(texts)


def _after(shown: Sequence[Demonstration], encoded: Sequence[list[int]], prompt: Prompt) -> Prompt:
    """Return a prompt after its demonstrations. ``encoded``: their ids."""
    if not shown:
        return prompt
    before = [token for ids in encoded for token in ids]
    cut = range(len(before) + prompt.cut.start, len(before) + prompt.cut.stop)
    return Prompt([*before, *prompt.ids], cut, partial(_after, shown[1:], encoded[1:], prompt), shown_names(shown))


def _conversations(examples: pa.Table, chat: ChatTemplate) -> list[Prompt]:
    asked = [_asked_after(chat, *_turns(row), row.get(DEMONSTRATIONS, ())) for row in examples.to_pylist()]
    encoded = chat.encode([each.rendered for each in asked])
    return [each.prompt(chat, tokens) for each, tokens in zip(asked, encoded, strict=True)]


def _turns(row: Mapping[str, str]) -> tuple[list[Message], int]:
    """Return the turns of an example up to its question, and how many characters of the first one are context.

    From chat data these are the turns before the question, of which the system prompt is context. Of any other example
    the context and the question make one turn, each on lines of its own.
    """
    earlier = history(row.get("meta", ""))
    question = row["question"].strip()
    if earlier:
        return [*earlier, {"role": "user", "content": question}], _system_characters(earlier)
    return [user_turn(row["context"], question)], len(row["context"].strip())


def _system_characters(turns: Sequence[Message]) -> int:
    return len(turns[0]["content"]) if turns[0]["role"] == "system" else 0


def _asked_after(chat: ChatTemplate, turns: Sequence[Message], context: int, shown: Sequence[Demonstration]) -> _Asked:
    """Return a conversation after its demonstrations: turns of the user and the assistant, after a system prompt.

    If the template refuses the conversation with them, they are left out.
    """
    if shown:
        system = turns[:1] if turns[0]["role"] == "system" else []
        pairs = [(each["asked"], each["answer"].strip()) for each in shown]
        earlier: list[Message] = [
            {"role": role, "content": text}
            for pair in pairs
            for role, text in zip(("user", "assistant"), pair, strict=True)
        ]
        try:
            rendered = chat.prompt([*system, *earlier, *turns[len(system) :]])
        except RefusedConversationError:
            return _Asked.of(chat, turns, context)
        return _Asked(turns, rendered, context, shown)
    return _Asked.of(chat, turns, context)


def _encoded_after(
    chat: ChatTemplate, turns: Sequence[Message], context: int, shown: Sequence[Demonstration]
) -> Prompt:
    """Return the prompt of a conversation after its demonstrations."""
    asked = _asked_after(chat, turns, context, shown)
    (tokens,) = chat.encode([asked.rendered])
    return asked.prompt(chat, tokens)


@dataclass(frozen=True)
class _Asked:
    """A conversation up to its question, rendered."""

    turns: Sequence[Message]
    """Without demonstrations."""
    rendered: Rendered
    context: int
    """How many characters of the first turn can be left out, once there are no demonstrations any more."""
    shown: Sequence[Demonstration] = ()
    """Its demonstrations."""

    @classmethod
    def of(cls, chat: ChatTemplate, turns: Sequence[Message], context: int) -> _Asked:
        return cls(turns, chat.prompt(turns), context)

    def prompt(self, chat: ChatTemplate, tokens: Encoded) -> Prompt:
        if self.shown:
            fewer = partial(_encoded_after, chat, self.turns, self.context, self.shown[1:])
            return Prompt(tokens.ids, range(0), fewer, shown_names(self.shown))
        start = self.rendered.starts()[0]
        return Prompt(tokens.ids, tokens.within(start, start + self.context), self._later(chat))

    def _later(self, chat: ChatTemplate) -> Callable[[], Prompt] | None:
        """Return what makes the prompt without the oldest exchange: a question, and what follows up to the next."""
        system = [turn for turn in self.turns[:1] if turn["role"] == "system"]
        rest = list(self.turns[len(system) :])
        kept = list(dropwhile(lambda turn: turn["role"] != "user", rest[1:]))
        return partial(_without_oldest, chat, [*system, *kept]) if kept else None


def _without_oldest(chat: ChatTemplate, turns: Sequence[Message]) -> Prompt:
    return _encoded_after(chat, turns, _system_characters(turns), ())
