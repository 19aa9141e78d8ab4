"""OpenAI's own client, whole and streamed, one after another and side by side, and what it makes of errors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from ray_l4.learner.engine import Decoding, Prompt
from ray_l4.learner.rolling_batch import RollingBatch
from ray_l4.store.run_directory import RunDirectory
from tests.serve.serve_fixtures import LIMIT, TASKS, Served, answered


@pytest.fixture(scope="module")
def client(served: Served) -> openai.OpenAI:
    return served.openai()


@pytest.fixture(scope="module")
def rows(run: RunDirectory, served: Served) -> list[dict[str, Any]]:
    """Examples of a task that always asks the same question, with answers of the served student."""
    return answered(run, 1, served.model.checkpoint.student, "mini.woz")


def user(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def test_models_are_the_run_and_its_tasks(client: openai.OpenAI, served: Served) -> None:
    names = [model.id for model in client.models.list()]
    assert names == [served.name, *(f"{served.name}/{task}" for task in TASKS)]
    for name in names:
        assert client.models.retrieve(name).id == name
        assert client.models.retrieve(name).owned_by == "ray-l4"


def test_a_task_answers_as_the_run_in_both_interfaces(
    client: openai.OpenAI, served: Served, rows: list[dict[str, Any]]
) -> None:
    name = f"{served.name}/mini.woz"
    for row in rows:
        chat = client.chat.completions.create(model=name, messages=user(row["context"]))
        plain = client.completions.create(model=name, prompt=row["context"])
        assert chat.choices[0].message.content == plain.choices[0].text == row["prediction"]
        assert chat.usage is not None and plain.usage is not None
        assert chat.usage.completion_tokens == plain.usage.completion_tokens
        assert chat.system_fingerprint == plain.system_fingerprint == served.model.fingerprint
        assert chat.choices[0].finish_reason in ("stop", "length")


def test_earlier_messages_are_the_context(client: openai.OpenAI, served: Served, run: RunDirectory) -> None:
    for row in answered(run, 1, served.model.checkpoint.student, "mini.rest")[:4]:
        messages: list[Any] = [{"role": "system", "content": row["context"]}, *user(row["question"])]
        found = client.chat.completions.create(model=f"{served.name}/mini.rest", messages=messages)
        assert found.choices[0].message.content == row["prediction"]


def test_a_stream_is_the_same_answer_in_pieces(
    client: openai.OpenAI, served: Served, rows: list[dict[str, Any]]
) -> None:
    name, pieces_of_all = f"{served.name}/mini.woz", 0
    for row in rows:
        stream = client.chat.completions.create(
            model=name, messages=user(row["context"]), stream=True, stream_options={"include_usage": True}
        )
        *chunks, last = list(stream)
        assert chunks[0].choices[0].delta.role == "assistant"
        pieces = [chunk.choices[0].delta.content or "" for chunk in chunks]
        assert "".join(pieces) == row["prediction"]
        assert [chunk.choices[0].finish_reason for chunk in chunks][-1] in ("stop", "length")
        assert last.usage is not None and last.choices == []
        assert last.usage.total_tokens == last.usage.prompt_tokens + last.usage.completion_tokens
        assert {chunk.system_fingerprint for chunk in [*chunks, last]} == {served.model.fingerprint}
        pieces_of_all += sum(bool(piece) for piece in pieces)
        plain = client.completions.create(model=name, prompt=row["context"], stream=True)
        assert "".join(chunk.choices[0].text for chunk in plain) == row["prediction"]
    assert pieces_of_all > 2 * len(rows), "answers come piece by piece"


def test_the_run_itself_continues_a_text(client: openai.OpenAI, served: Served) -> None:
    """What follows is the model's plain text, with white space, and no more tokens than asked for."""
    model, tokenizer = served.model._loaded.model, served.model.tokenizer
    batch = RollingBatch(model, Decoding(end=tokenizer.eos))
    (row,) = batch.join([Prompt(tokenizer.encode("i want cheap food"), 11)])
    while len(batch):
        batch.step()
    found = client.completions.create(model=served.name, prompt=["i want cheap food"], max_tokens=11)
    assert found.choices[0].text == tokenizer.decode(row.new)
    assert found.usage is not None and found.usage.completion_tokens == len(row.new)
    streamed = client.completions.create(model=served.name, prompt="i want cheap food", max_tokens=11, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == tokenizer.decode(row.new)


def test_nothing_follows_a_stop_string(client: openai.OpenAI, served: Served, rows: list[dict[str, Any]]) -> None:
    name = f"{served.name}/mini.woz"
    row = max(rows, key=lambda row: len(row["prediction"]))
    whole = row["prediction"]
    stop = whole[len(whole) // 2 :][:3]
    expected = whole[: whole.index(stop)].rstrip()
    found = client.completions.create(model=name, prompt=row["context"], stop=[stop, "never said"])
    assert found.choices[0].text == expected
    assert found.choices[0].finish_reason == "stop"
    streamed = list(client.completions.create(model=name, prompt=row["context"], stop=stop, stream=True))
    assert "".join(chunk.choices[0].text for chunk in streamed) == expected
    assert streamed[-1].choices[0].finish_reason == "stop"


def test_many_streams_at_once_are_what_each_is_alone(served: Served, rows: list[dict[str, Any]]) -> None:
    async def all_at_once() -> list[str]:
        async with openai.AsyncOpenAI(
            base_url=f"{served.address}/v1", api_key="none", max_retries=0, timeout=LIMIT
        ) as client:

            async def one(row: dict[str, Any]) -> str:
                stream: AsyncIterator[Any] = await client.chat.completions.create(
                    model=f"{served.name}/mini.woz", messages=user(row["context"]), stream=True
                )
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            return await asyncio.gather(*(one(row) for row in rows * 3))

    assert asyncio.run(all_at_once()) == [row["prediction"] for row in rows] * 3


def test_errors_are_those_that_the_client_knows(client: openai.OpenAI, served: Served) -> None:
    with pytest.raises(openai.NotFoundError, match=f"Did you mean '{served.name}/mini.woz'") as unknown:
        client.chat.completions.create(model=f"{served.name}/mini.wos", messages=user("a"))
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="n is not supported") as several:
        client.completions.create(model=served.name, prompt="a", n=2)
    assert several.value.type == "invalid_request_error"
    with pytest.raises(openai.BadRequestError, match="the prompt has") as long:
        client.completions.create(model=served.name, prompt="cheap food " * 5000)
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="no chat template"):
        client.chat.completions.create(model=served.name, messages=user("a"))
