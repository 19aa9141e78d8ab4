"""Demonstrations in prompts: where they stand, and that they are the first to be left out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_l4.config.experiment import EvaluationConfig
from ray_l4.tasks.chat import Message, meta_of, user_turn
from ray_l4.text.assembly import assemble
from ray_l4.text.memory import DEMONSTRATIONS, TextMemory, remembered
from ray_l4.text.prompts import encode_prompts
from ray_l4.text.test_sets import build_test_set
from ray_l4.text.tokenizer import TaskTokenizer
from ray_l4.text.tokens import TOKENS
from tests.text import chat_fixtures as chats

Examples = Callable[..., pa.Table]

KNOWN = [
    ("cheap chinese town", "in north", "food area"),
    ("cheap town", "in north", "area"),
    ("restaurant", "in north", "food"),
]
ASKED = ("cheap chinese restaurant", "in north", "food")


def shown(examples_of: Examples, *asked: tuple[str, str, str], count: int = 2) -> pa.Table:
    """Examples with the demonstrations of a memory of ``KNOWN``."""
    memory = TextMemory({"known": remembered(examples_of(*KNOWN))}, count)
    return memory.show(examples_of(*asked))


def texts(examples: pa.Table) -> list[str]:
    """The demonstrations of the first example as text."""
    return [f"{each['asked']}\nAnswer: {each['answer']}\n###" for each in examples[DEMONSTRATIONS].to_pylist()[0]]


def test_they_stand_before_the_context_as_text(tokenizer: TaskTokenizer, examples_of: Examples) -> None:
    examples = shown(examples_of, ASKED)
    assert texts(examples)[1] == "cheap chinese town\nin north\nAnswer: food area\n###", "the most similar one is last"
    before = [token for text in texts(examples) for token in tokenizer.encode(text)]
    (alone,) = encode_prompts(examples.drop_columns([DEMONSTRATIONS]), tokenizer)
    (prompt,) = encode_prompts(examples, tokenizer)
    assert prompt.ids == [*before, *alone.ids]
    assert [prompt.ids[position] for position in prompt.cut] == tokenizer.encode(ASKED[0])
    table, dropped = assemble(examples, tokenizer, 400)
    assert dropped == [] and table.schema == TOKENS
    assert table["ids"].to_pylist() == [[*before, *alone.ids, *tokenizer.encode(ASKED[2])]]


@given(limit=st.integers(0, 120), count=st.integers(0, 3))
def test_whole_demonstrations_are_left_out_first_and_the_least_similar_before_others(
    tokenizer: TaskTokenizer, examples_of: Examples, limit: int, count: int
) -> None:
    examples = shown(examples_of, ASKED, count=count)
    plain = examples.drop_columns([DEMONSTRATIONS])
    (prompt,), (alone,) = encode_prompts(examples, tokenizer), encode_prompts(plain, tokenizer)
    found, expected = prompt.within(limit), alone.within(limit)
    if found is None or expected is None:
        assert found is expected is None, "demonstrations take no room from the question"
        return
    assert len(found.ids) <= limit
    assert found.shown == prompt.shown[len(prompt.shown) - len(found.shown) :]
    kept = texts(examples)[len(prompt.shown) - len(found.shown) :]
    before = [token for text in kept for token in tokenizer.encode(text)]
    assert found.ids == [*before, *expected.ids]
    if found.shown:
        assert expected.ids == alone.ids, "a context is cut only without any"
    if len(found.shown) < len(prompt.shown):
        next_one = len(tokenizer.encode(texts(examples)[-len(found.shown) - 1]))
        assert len(before) + next_one + len(alone.ids) > limit, "no more are left out than needed"
    assert prompt.fixed == alone.fixed


def test_a_test_set_says_which_ones_fitted(tokenizer: TaskTokenizer, examples_of: Examples) -> None:
    long = (" ".join(["cheap"] * 60), "in north", "food")
    examples = shown(examples_of, ASKED, long)
    tests = build_test_set(examples, "em", tokenizer, 80, EvaluationConfig())
    assert tests.prompts.schema == TOKENS
    assert [len(names) for names in tests.shown] == [2, 0]
    assert tests.shown[0] == [each["name"] for each in examples[DEMONSTRATIONS].to_pylist()[0]]
    plain = build_test_set(examples.drop_columns([DEMONSTRATIONS]), "em", tokenizer, 80, EvaluationConfig())
    assert plain.shown == () and list(plain.items) == list(tests.items)
    assert plain.prompts["ids"][1] == tests.prompts["ids"][1]


CAPITALS = [
    ("", "What is the capital of Italy?", "Rome"),
    ("", "What is the capital of France, please?", "Paris"),
]
QUESTION = "What is the capital of France?"


def conversation(examples_of: Examples, earlier: list[Message]) -> pa.Table:
    """A question of chat data after two demonstrations."""
    memory = TextMemory({"known": remembered(examples_of(*CAPITALS))}, 2)
    row = examples_of(("", QUESTION, "Paris"), task="capitals").to_pylist()[0] | {"meta": meta_of(earlier)}
    return memory.show(pa.Table.from_pylist([row]))


SYSTEM: Message = {"role": "system", "content": "Answer in one word."}


@pytest.mark.parametrize("template", ["chatml", "headers", "no system"])
@pytest.mark.parametrize("earlier", [[], [SYSTEM]], ids=["no system prompt", "a system prompt"])
def test_in_a_chat_template_they_are_earlier_turns(
    tmp_path: Path, examples_of: Examples, template: str, earlier: list[Message]
) -> None:
    tokenizer = chats.tokenizer(tmp_path, chats.TEMPLATES[template])
    examples = conversation(examples_of, earlier)
    turns: list[Message] = list(earlier)
    for each in examples[DEMONSTRATIONS].to_pylist()[0]:
        turns += [{"role": "user", "content": each["asked"]}, {"role": "assistant", "content": each["answer"]}]
    turns.append(user_turn("", QUESTION))
    assert tokenizer.chat is not None
    (expected,) = tokenizer.chat.encode([tokenizer.chat.prompt(turns)])
    (prompt,) = encode_prompts(examples, tokenizer)
    assert prompt.ids == expected.ids and prompt.shown == ("known/sst-0", "known/sst-1")
    (alone,) = encode_prompts(examples.drop_columns([DEMONSTRATIONS]), tokenizer)
    one = prompt.within(len(prompt.ids) - 1)
    assert one is not None and one.shown == ("known/sst-1",)
    none = prompt.within(len(alone.ids))
    assert none is not None and none.ids == alone.ids and none.shown == ()
    assert prompt.fixed == alone.fixed
    for limit in range(alone.fixed - 1, len(alone.ids)):
        found, cut = prompt.within(limit), alone.within(limit)
        assert (found and found.ids) == (cut and cut.ids), "then the context is cut as without any"


def test_a_conversation_that_the_template_refuses_with_them_goes_without(tmp_path: Path, examples_of: Examples) -> None:
    start = "{% for message in messages %}"
    short = "{% if messages | length > 3 %}{{ raise_exception('too long') }}{% endif %}"
    tokenizer = chats.tokenizer(tmp_path, chats.CHATML.replace(start, short + start, 1))
    examples = conversation(examples_of, [])
    (prompt,) = encode_prompts(examples, tokenizer)
    (alone,) = encode_prompts(examples.drop_columns([DEMONSTRATIONS]), tokenizer)
    assert prompt.ids == alone.ids and prompt.shown == ()
