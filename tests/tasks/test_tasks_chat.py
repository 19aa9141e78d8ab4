"""Chat data: conversations and pairs of prompt and completion, in every layout, and records that are neither."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_l4.config.experiment import DataConfig
from ray_l4.config.stream import Columns, TaskConfig
from ray_l4.errors import DataError
from ray_l4.tasks.chat import history
from ray_l4.tasks.prepare import prepare
from ray_l4.tasks.registry import load

Write = Callable[..., Path]


def lines(*records: Any) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


Own = Callable[..., TaskConfig]


def said(*turns: tuple[str, Any]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in turns]


SYSTEM, HELLO, REPLY = ("system", "Be brief."), ("user", "Hello"), ("assistant", "Hi")
ASK, ANSWER = ("user", "Capital of France?"), ("assistant", "Paris")
HISTORY = said(SYSTEM, HELLO, REPLY)
CONTEXT = "system: Be brief.\nuser: Hello\nassistant: Hi"
SHAREGPT = {"system": "system", "user": "human", "assistant": "gpt"}

LAYOUTS: dict[str, tuple[dict[str, Any], list[dict[str, str]]]] = {
    "one turn": ({"messages": said(ASK, ANSWER)}, []),
    "a system prompt": ({"messages": said(SYSTEM, ASK, ANSWER)}, said(SYSTEM)),
    "several turns": ({"messages": said(SYSTEM, HELLO, REPLY, ASK, ANSWER)}, HISTORY),
    "text in parts": (
        {
            "messages": said(
                ("user", [{"type": "text", "text": "Capital "}, {"type": "text", "text": "of France?"}]),
                ("assistant", [{"type": "text", "text": "Paris"}]),
            )
        },
        [],
    ),
    "blanks around": ({"messages": said((ASK[0], f"\n {ASK[1]} "), (ANSWER[0], " Paris\n"))}, []),
    "developer": ({"messages": said(("developer", SYSTEM[1]), ASK, ANSWER)}, said(SYSTEM)),
    "ShareGPT": (
        {
            "conversations": [
                {"from": SHAREGPT[role], "value": text} for role, text in (SYSTEM, HELLO, REPLY, ASK, ANSWER)
            ]
        },
        HISTORY,
    ),
    "prompt and completion": ({"prompt": ASK[1], "completion": ANSWER[1]}, []),
    "turns as prompt and completion": (
        {"prompt": said(SYSTEM, HELLO, REPLY, ASK), "completion": said(ANSWER)},
        HISTORY,
    ),
    "turns and a text": ({"prompt": said(SYSTEM, ASK), "completion": ANSWER[1]}, said(SYSTEM)),
    "thanks after the answer": ({"messages": said(SYSTEM, ASK, ANSWER, ("user", "Thanks!"))}, said(SYSTEM)),
    "a blank system prompt": ({"messages": said(("system", " \u200b"), ASK, ANSWER)}, []),
    "text in JSON": ({"messages": json.dumps(said(SYSTEM, ASK, ANSWER))}, said(SYSTEM)),
    "a system prompt of its own": (
        {"system": SYSTEM[1], "conversations": [{"from": "human", "value": ASK[1]}, {"from": "gpt", "value": "Paris"}]},
        said(SYSTEM),
    ),
    "a system prompt beside a prompt": (
        {"system_prompt": f"{SYSTEM[1]} ", "prompt": ASK[1], "completion": ANSWER[1]},
        said(SYSTEM),
    ),
    "a system prompt given twice": ({"system": SYSTEM[1], "messages": said(SYSTEM, ASK, ANSWER)}, said(SYSTEM)),
    "a blank column of system prompts": ({"system": "\u200b", "messages": said(ASK, ANSWER)}, []),
    "other columns": ({"source": "x", "score": 3, "context": "", "prompt": ASK[1], "completion": ANSWER[1]}, []),
    "thanks in a completion": ({"prompt": ASK[1], "completion": said(ANSWER, ("user", "Thanks!"))}, []),
    "messages beside a prompt": ({"prompt": "x", "prompt_id": "y", "messages": said(ASK, ANSWER)}, []),
}


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_recognised(
    layout: str, kind: str, write: Write, own: Own, data: DataConfig, tmp_path: Path
) -> None:
    record, earlier = LAYOUTS[layout]
    if kind == "parquet":
        (tmp_path / "own").mkdir()
        pq.write_table(pa.Table.from_pylist([record]), tmp_path / "own" / "train.parquet")
    else:
        write("own/train.jsonl", lines(record))
    (row,) = load(own(), "train", data).to_pylist()
    assert (row["question"], row["answer"], row["references"], row["sample_id"]) == (ASK[1], "Paris", ["Paris"], "0")
    assert history(row["meta"]) == earlier
    assert row["context"] == "\n".join(f"{turn['role']}: {turn['content']}" for turn in earlier)


@pytest.mark.parametrize(
    ("record", "columns", "context", "question"),
    [
        ({"prompt": "Who?", "completion": "Ann"}, {}, "Ann sings.", "Who?"),
        ({"prompt": said(("user", "Who?")), "completion": "Ann"}, {}, "Ann sings.", "Who?"),
        (
            {"prompt": said(SYSTEM, ("user", "Who?")), "completion": "Ann"},
            {},
            "system: Be brief.",
            "Ann sings.\nWho?",
        ),
        (
            {"instruction": "Who?", "output": "Ann"},
            {"prompt": "instruction", "completion": "output", "context": "input"},
            "Ann sings.",
            "Who?",
        ),
    ],
    ids=["texts", "turns", "earlier turns", "Alpaca"],
)
def test_a_context_beside_a_prompt_stands_before_it(
    record: dict[str, Any],
    columns: dict[str, str],
    context: str,
    question: str,
    write: Write,
    own: Own,
    data: DataConfig,
) -> None:
    settings = Columns(**columns)
    write("own/train.jsonl", lines(record | {settings.context: " Ann sings."}))
    (row,) = load(own(columns=settings), "train", data).to_pylist()
    assert (row["context"], row["question"], row["answer"]) == (context, question, "Ann")


@pytest.mark.parametrize("column", ["messages", "conversations"])
def test_a_context_beside_conversations_is_not_left_out_in_silence(
    column: str, write: Write, own: Own, data: DataConfig
) -> None:
    write("own/train.jsonl", lines({column: said(ASK, ANSWER), "context": "c"}))
    with pytest.raises(DataError, match=rf"train\.jsonl: has conversations \({column}\) and a column 'context'"):
        load(own(), "train", data)
    (row,) = load(own(columns=Columns(messages=column)), "train", data).to_pylist()
    assert (row["context"], row["question"]) == ("", ASK[1])


def test_conversations_in_csv(write: Write, own: Own, data: DataConfig) -> None:
    text = json.dumps(said(SYSTEM, ASK, ANSWER)).replace('"', '""')
    write("own/train.csv", f'messages\n"{text}"\n')
    (row,) = load(own(), "train", data).to_pylist()
    assert (row["question"], row["answer"], history(row["meta"])) == (ASK[1], "Paris", said(SYSTEM))


def test_pairs_in_csv(write: Write, own: Own, data: DataConfig) -> None:
    write("own/train.csv", "prompt,completion\nCapital of France?,Paris\n")
    assert load(own(), "train", data).column("question").to_pylist() == [ASK[1]]


@pytest.mark.parametrize(
    ("record", "answers"),
    [
        ({"prompt": "p", "completion": ["a", "b"]}, ["a", "b"]),
        ({"prompt": "p", "completion": "a", "references": ["b", "a"]}, ["a", "b"]),
        ({"messages": said(ASK, ANSWER), "references": ["It is Paris"]}, ["Paris", "It is Paris"]),
        ({"messages": said(ASK, ANSWER), "references": "It is Paris"}, ["Paris", "It is Paris"]),
        ({"messages": said(ASK, ANSWER), "references": None}, ["Paris"]),
    ],
)
def test_several_right_answers(record: Any, answers: list[str], write: Write, own: Own, data: DataConfig) -> None:
    write("own/train.jsonl", lines(record))
    assert load(own(), "train", data).column("references").to_pylist() == [answers]


@pytest.mark.parametrize(
    ("columns", "record"),
    [
        ({"messages": "chat"}, {"chat": said(ASK, ANSWER), "context": "c", "answer": "a"}),
        ({"prompt": "instruction", "completion": "output"}, {"instruction": ASK[1], "output": "Paris"}),
        ({"prompt": "context", "completion": "answer"}, {"context": ASK[1], "answer": "Paris"}),
        ({"messages": "chat", "id": "n", "references": "also"}, {"chat": said(ASK, ANSWER), "n": 7, "also": []}),
    ],
)
def test_columns_of_other_names(columns: dict[str, str], record: Any, write: Write, own: Own, data: DataConfig) -> None:
    write("own/train.jsonl", lines(record))
    (row,) = load(own(columns=Columns(**columns)), "train", data).to_pylist()
    assert (row["context"], row["question"], row["answer"]) == ("", ASK[1], "Paris")
    assert row["sample_id"] == str(record.get("n", 0))


def test_plain_columns_come_first(write: Write, own: Own, data: DataConfig) -> None:
    """What was read as context, question and answer before still is, by default or because the task names a column."""
    both = {"context": "c", "question": "q", "answer": "a", "prompt": "p", "completion": "d", "messages": said(ASK)}
    write("own/train.jsonl", lines(both))
    for columns in ({}, {"context": "prompt"}):
        (row,) = load(own(columns=Columns(**columns)), "train", data).to_pylist()
        assert (row["question"], row["answer"], row["meta"]) == ("q", "a", "")


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no answer": ({"messages": said(SYSTEM, ASK)}, "no message is the assistant's, expected its answer"),
    "thanks before an answer": ({"messages": said(ANSWER, HELLO)}, "nothing stands before the answer"),
    "invisible answer": ({"messages": said(ASK, ("assistant", "\u200b"))}, "message 2: the assistant's text is blank"),
    "invisible prompt": ({"prompt": "\u200b", "completion": "a"}, "prompt is blank"),
    "an invisible one among answers": ({"prompt": "p", "completion": ["a", "\ufeff"]}, "a value that is blank"),
    "two system prompts": (
        {"messages": said(SYSTEM, ASK, ANSWER), "system": "Be kind."},
        "system differs from the system prompt among the messages",
    ),
    "a list as system prompt": ({"messages": said(ASK, ANSWER), "system": ["x"]}, "system is of type list"),
    "a number as context": ({"prompt": "p", "completion": "a", "context": 3}, "context is of type int, expected text"),
    "JSON of another kind": ({"messages": "{}"}, "messages is of type dict, expected a list of messages"),
    "no question": ({"messages": said(ANSWER)}, "nothing stands before the answer"),
    "no user before": ({"messages": said(SYSTEM, ANSWER)}, "a message of the system stands before the answer"),
    "empty": ({"messages": []}, "messages is an empty list"),
    "missing": ({"messages": None}, "messages is missing"),
    "text": (
        {"messages": "hello"},
        "messages is text but not JSON (Expecting value: line 1 column 1 (char 0)), expected a list",
    ),
    "no object": ({"messages": ["hello"]}, "messages, message 1 is of type str, expected an object"),
    "unknown role": ({"messages": said(("tool", "x"), ANSWER)}, "message 1 has the role 'tool', expected system, user"),
    "no role": ({"messages": [{"content": "x"}, *said(ANSWER)]}, "message 1 has the role None"),
    "blank answer": ({"messages": said(ASK, ("assistant", " \n"))}, "message 2: the assistant's text is blank"),
    "no text": ({"messages": said(ASK, ("assistant", None))}, "message 2: content is missing"),
    "a number": ({"messages": said(ASK, ("assistant", 3))}, "message 2: content is of type int"),
    "an image": ({"messages": said(("user", [{"type": "image"}]), ANSWER)}, "content has a part of type 'image'"),
    "a surrogate": ({"messages": said(("user", "\ud800"), ANSWER)}, "question contains a lone surrogate"),
    "blank prompt": ({"prompt": " ", "completion": "a"}, "prompt is blank"),
    "blank completion": ({"prompt": "p", "completion": ""}, "completion is blank"),
    "no completion": ({"prompt": "p", "completion": None}, "completion is missing"),
    "a blank among answers": ({"prompt": "p", "completion": ["a", " "]}, "completion contains a value that is blank"),
    "nothing among answers": ({"prompt": "p", "completion": ["a", None]}, "completion contains a value that is blank"),
    "a blank reference": ({"messages": said(ASK, ANSWER), "references": ["a", ""]}, "references contains a value"),
    "completion of the user": ({"prompt": "p", "completion": said(ASK)}, "no message is the assistant's"),
    "only the prompt has an answer": (
        {"prompt": said(ASK, ANSWER, HELLO), "completion": said(ASK)},
        "no message is the assistant's",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_records_are_located(case: str, write: Write, own: Own, data: DataConfig, lenient: DataConfig) -> None:
    record, reason = BAD[case]
    good = {"messages": said(ASK, ANSWER)} if "messages" in record else {"prompt": "p", "completion": "a"}
    write("own/train.jsonl", lines(good, good, record))
    with pytest.raises(DataError, match=r"1 of 3 records[\s\S]*train\.jsonl, line 3: ") as caught:
        load(own(), "train", data)
    assert reason in str(caught.value)
    assert load(own(), "train", lenient).num_rows == 2


@pytest.mark.parametrize(("columns", "missing"), [({"messages": "chats"}, "chats"), ({"prompt": "prompts"}, "prompts")])
def test_a_renamed_column_that_is_missing_is_named(
    columns: dict[str, str], missing: str, write: Write, own: Own, data: DataConfig
) -> None:
    write("own/train.jsonl", lines({"chat": said(ASK, ANSWER), "prompt": "p", "completion": "a"}))
    if "messages" in columns:
        write("own/train.jsonl", lines({"chat": said(ASK, ANSWER)}))
    with pytest.raises(DataError, match=f"no column '{missing}'"):
        load(own(columns=Columns(**columns)), "train", data)


def test_a_constant_question_is_refused(write: Write, own: Own, data: DataConfig) -> None:
    write("own/train.jsonl", lines({"prompt": "p", "completion": "a"}))
    with pytest.raises(DataError, match="'question' is set, but the user's last turn"):
        load(own(question="What?"), "train", data)


def test_prepared_conversations_are_read_back_unchanged(
    write: Write, own: Own, data: DataConfig, tmp_path: Path
) -> None:
    for split in ("train", "test"):
        write(f"own/{split}.jsonl", lines({"messages": said(SYSTEM, HELLO, REPLY, ASK, ANSWER)}))
    table = load(own(), "train", data)
    prepare([own()], data, tmp_path / "prepared")
    again = TaskConfig(name="mine", path=tmp_path / "prepared" / "mine", metric="em")
    assert load(again, "train", data) == table
    assert history(table["meta"][0].as_py()) == HISTORY
    assert table["context"].to_pylist() == [CONTEXT]


def test_meta_of_other_data_holds_no_turns() -> None:
    assert [history(meta) for meta in ("", "{}", '{"header": ["messages"]}')] == [[], [], []]
