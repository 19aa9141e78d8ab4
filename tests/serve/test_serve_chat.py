"""A model with a chat template: conversations are rendered as in its run, with their earlier turns."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from ray_l4.store.run_directory import Cell, RunDirectory
from tests.run import run_fixtures as small
from tests.serve.serve_fixtures import Served, serving
from tests.text import chat_fixtures as chats

SYSTEM = {"role": "system", "content": "Answer in one word."}
EPOCHS = 40


def turns(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[number % 2], "content": text} for number, text in enumerate(texts)]


CONVERSATIONS = [
    [SYSTEM, *turns("What is the capital of France?", "Paris")],
    [SYSTEM, *turns("What is the capital of Italy?", "Rome")],
    [SYSTEM, *turns("What is the capital of France?", "Paris", "capital of Italy?", "Rome")],
    turns("What is the capital of <turn_end> Italy?", "Rome"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    folder = tmp_path_factory.mktemp("chat")
    (folder / "capitals").mkdir()
    for split in ("train", "test"):
        records = (json.dumps({"messages": messages}) + "\n" for messages in CONVERSATIONS)
        (folder / "capitals" / f"{split}.jsonl").write_text("".join(records))
    chats.save_instruct(folder / "instruct", chats.NO_SYSTEM, steps=0, eos="<turn_end>")
    own = {"name": "capitals", "path": str(folder / "capitals"), "metric": "em", "train": "all", "test": "all"}
    config = small.experiment(
        method="finetune",
        stream=[own],
        model={"name": str(folder / "instruct")},
        training={"epochs": EPOCHS, "batch_size": 4},
        optim={"variant": "torch", "lr": 1e-2, "eps": 1e-8},
        evaluation={"max_new_tokens": 6},
    )
    return small.complete_run(config, small.cluster("in_process"), folder / "chat-run")[0]


@pytest.fixture(scope="module")
def served(run: RunDirectory) -> Iterator[Served]:
    with serving(run.path) as service:
        yield service


@pytest.fixture(scope="module")
def client(served: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.address}/v1", api_key="none", max_retries=0)


def predictions(run: RunDirectory) -> list[str]:
    import pyarrow.parquet as pq

    table = pq.read_table(run.path / "predictions" / f"{Cell(0, EPOCHS, 0, 'capitals').name}.parquet")
    found: list[str] = table["prediction"].to_pylist()
    return found


def test_conversations_are_answered_as_in_the_run_with_and_without_a_task(
    run: RunDirectory, client: openai.OpenAI
) -> None:
    expected = predictions(run)
    assert len(set(expected)) > 1, "a model that says the same to all tests nothing"
    for name in ("chat-run/capitals", "chat-run"):
        found = []
        for messages in CONVERSATIONS:
            asked: Any = messages[:-1]
            answer = client.chat.completions.create(model=name, messages=asked, max_completion_tokens=6)
            found.append(answer.choices[0].message.content)
        assert found == expected


def test_parts_developers_and_blank_prompts_are_understood(run: RunDirectory, client: openai.OpenAI) -> None:
    question = {"role": "user", "content": [{"type": "text", "text": "What is the capital "}]}
    question["content"].append({"type": "text", "text": "of Italy?"})  # type: ignore[attr-defined]
    messages: Any = [{"role": "system", "content": " "}, {**SYSTEM, "role": "developer"}, question]
    answer = client.chat.completions.create(model="chat-run/capitals", messages=messages)
    assert answer.choices[0].message.content == predictions(run)[1]


def test_a_conversation_that_the_template_refuses_is_refused(client: openai.OpenAI) -> None:
    messages: Any = [*turns("a"), *turns("b")]
    for name in ("chat-run", "chat-run/capitals"):
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(model=name, messages=messages)
        assert refused.value.code == "invalid_value"
