"""Inputs whose task files are damaged: JSONL, CSV, Parquet, chat data and the reference implementations' files."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from hypothesis import strategies as st

from analysis.fuzz.inputs import DRY_RUN, HERE, SETTINGS, Input
from analysis.fuzz.material import EXPERIMENT
from analysis.fuzz.mutations import Draw, damaged_file, damaged_table, damaged_tree, texts

_ROW = {"context": "one two three", "question": "which", "answer": "two", "id": "1", "meta": {"a": [1]}}
_CHAT: dict[str, Any] = {
    "messages": [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yes"},
    ],
    "references": ["yes", "no"],
}
_SQUAD = {
    "version": "2",
    "data": [
        {
            "title": "t",
            "paragraphs": [
                {
                    "context": "c",
                    "qas": [{"id": "1", "question": "q", "answers": [{"text": "a"}], "is_impossible": False}],
                }
            ],
        }
    ],
}


@st.composite
def data(draw: Draw, material: Path) -> Input:
    """Draw the files of a task: JSONL, CSV, Parquet, chat data, or those of the reference implementations."""
    name, data = draw(st.sampled_from([_jsonl, _csv, _parquet, _chat, _squad]).flatmap(lambda make: make()))
    if not draw(st.integers(0, 3)):
        data = draw(damaged_file(name, data) if isinstance(data, bytes) else st.just(data))
    good = json.dumps(_CHAT if b"messages" in (data if isinstance(data, bytes) else b"") else _ROW).encode() + b"\n"
    suffix = Path(name).suffix
    test = (
        {"own/own_to_squad-test-v2.0.json": json.dumps(_SQUAD).encode()}
        if "squad" in name
        else {"own/test.jsonl": good}
    )
    files = {f"own/{name}": data} | test
    options = draw(
        st.sampled_from([(), (), ("--question", "what"), ("--column", "answer=x"), ("--column", "id=id"), ("-n", "50")])
    )
    show = ("data", "show", "own", "--path", f"{HERE}/own", *options)
    own = {
        "name": "own",
        "path": "own",
        "metric": draw(st.sampled_from(["em", "lfem", "avg_rouge", "nf1"])),
        "train": "all",
        "test": "all",
    }
    experiment = yaml.safe_dump(EXPERIMENT | {"stream": [own], "data": {"max_bad_fraction": 1}}).encode()
    return Input(
        draw(st.sampled_from([show, show, DRY_RUN])),
        SETTINGS | files | {"experiment.yaml": experiment, f"own/other{suffix}": b""},
    )


@st.composite
def _jsonl(draw: Draw) -> tuple[str, bytes]:
    lines = [json.dumps(_ROW | {"id": str(number)}) for number in range(3)]
    lines[draw(st.integers(0, 2))] = draw(damaged_tree(_ROW, json.dumps, ("context", "answer", "references", "id")))
    return "train.jsonl", "\n".join(lines).encode("utf-8", errors="surrogatepass")


@st.composite
def _chat(draw: Draw) -> tuple[str, bytes]:
    other = {"prompt": _CHAT["messages"][:2], "completion": "x", "references": ["x"]}
    tree = draw(st.sampled_from([_CHAT, other]))
    damaged = draw(damaged_tree(tree, json.dumps, ("role", "content", "messages", "prompt", "completion", "name")))
    return "train.jsonl", f"{json.dumps(tree)}\n{damaged}\n{json.dumps(tree)}".encode("utf-8", errors="surrogatepass")


@st.composite
def _csv(draw: Draw) -> tuple[str, bytes]:
    cell = st.one_of(texts, st.sampled_from(['"', '""', '"a', 'a"b', "a,b", "\n", "\r", "\t", "=1+1", '"' * 9]))
    rows = draw(st.lists(st.lists(cell, max_size=5), max_size=5))
    name, comma = draw(st.sampled_from([("train.csv", ","), ("train.tsv", "\t"), ("train.csv", ";")]))
    head = draw(
        st.sampled_from(["context,question,answer", "context,question,answer,id", "context,context,answer", "", "a"])
    )
    text = "\n".join([head.replace(",", comma), *(comma.join(row) for row in rows)])
    return name, text.encode("utf-8", errors="surrogatepass")


@st.composite
def _parquet(draw: Draw) -> tuple[str, bytes]:
    buffer = io.BytesIO()
    rows = [_ROW | {"answer": ["two", "2"]}] * 3
    pq.write_table(pa.Table.from_pylist([row | {"id": str(number)} for number, row in enumerate(rows)]), buffer)
    return "train.parquet", draw(damaged_table(buffer.getvalue()))


@st.composite
def _squad(draw: Draw) -> tuple[str, bytes]:
    return "own_to_squad-train-v2.0.json", draw(damaged_tree(_SQUAD)).encode("utf-8", errors="surrogatepass")
