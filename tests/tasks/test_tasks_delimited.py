"""CSV as spreadsheets and people write it: other separators, blank lines, quotes, encodings, and what is refused."""

from __future__ import annotations

import bz2
import csv
import gzip
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_l4.config.experiment import DataConfig
from ray_l4.config.stream import TaskConfig
from ray_l4.errors import DataError
from ray_l4.tasks.delimited import read_csv
from ray_l4.tasks.registry import load

Write = Callable[..., Path]
NEEDED = ("context", "question", "answer")
EXPECTED = [("c, 0", "q0", "3,5"), ("c\n1", 'q "1"', "a1")]
COMMAS = 'context,question,answer\n"c, 0",q0,"3,5"\n"c\n1","q ""1""",a1\n'
SEMICOLONS = 'context;question;answer\nc, 0;q0;3,5\n"c\n1";"q ""1""";a1\n'


def rows(folder: Path, data: DataConfig) -> list[tuple[str, str, str]]:
    """Context, question and answer of every example of a custom task's training file."""
    table = load(TaskConfig(name="mine", path=folder, metric="em"), "train", data)
    return [(row["context"], row["question"], row["answer"]) for row in table.to_pylist()]


@pytest.mark.parametrize(
    "content",
    [
        COMMAS,
        SEMICOLONS,
        SEMICOLONS.replace(";", "\t"),
        SEMICOLONS.replace(";", "|"),
        f"sep=;\n{SEMICOLONS}",
        f"\n  \n{COMMAS}",
        f";;\n{SEMICOLONS}",
        f"{COMMAS}\n   \n\u200b\n",
        COMMAS.replace("\n", "\r\n").replace("c\r\n1", "c\n1"),
        f"\ufeff{COMMAS}",
        f"\ufeff\n{SEMICOLONS}",
        COMMAS.replace("answer\n", "answer,,\n").replace('"3,5"\n', '"3,5",,\n'),
        COMMAS.replace("context", '"context"'),
        SEMICOLONS.replace("context", '"note, short";context').replace("\nc", "\nn;c").replace('\n"c', '\nn;"c'),
    ],
)
def test_the_same_table_however_it_is_written(content: str, write: Write, tmp_path: Path, data: DataConfig) -> None:
    write("own/train.csv", content)
    assert rows(tmp_path / "own", data) == EXPECTED


@pytest.mark.parametrize(("name", "pack"), [("tsv", bytes), ("tsv.gz", gzip.compress), ("csv.bz2", bz2.compress)])
def test_files_of_tabs_and_packed_files(
    name: str, pack: Callable[[bytes], bytes], tmp_path: Path, data: DataConfig
) -> None:
    (tmp_path / f"train.{name}").write_bytes(pack(SEMICOLONS.replace(";", "\t").encode()))
    assert rows(tmp_path, data) == EXPECTED


TEXT = st.text(st.characters(exclude_characters="\r\0", exclude_categories=["Cs"]), min_size=1, max_size=8)


@given(st.lists(st.tuples(TEXT, TEXT, TEXT), min_size=1, max_size=4), st.sampled_from(",;\t|"))
def test_whatever_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, table: list[tuple[str, str, str]], separator: str
) -> None:
    path = tmp_path_factory.mktemp("csv") / "train.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=separator, quoting=csv.QUOTE_ALL).writerows([NEEDED, *table])
    names, records = read_csv(path, NEEDED)
    assert tuple(names) == NEEDED and [tuple(record.values()) for _, record in records] == table


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("context,answer,question,answer\nc,a,q,b\n", r"column 'answer' occurs more than once"),
        ("context;question;answer;answer\nc;q;a;b\n", r"column 'answer' occurs more than once"),
        ("context;question;anser\nc;q;a\n", r"no column 'answer'\. Did you mean 'anser'"),
        ("context~question~answer\nc~q~a\n", r"no column 'context'\. .*context~question~answer"),
        ("context;question;answer\nc;q;a;b\n", r"line 2: more fields than the header's 3 columns.*semicolon in double"),
        ("\n\ncontext,question,answer\nc,q\n", r"line 4: answer is missing"),
        ("context,question,answer\nc,q, \u00a0\u200b\n", r"line 2: answer is blank"),
        ("context,question,answer\n\u200b,\u2060,a\n", r"line 2: context and question are both blank"),
        ("context,question,answer\n,,\n", r"line 2: answer is blank"),
        ("\n \n", r"is empty; expected a header"),
        ('context;question;answer\nc;q;a\n"c;q;a\n', r"not CSV after line 2"),
        (COMMAS.encode("utf-16"), r"encoded as UTF-16, expected UTF-8"),
        (COMMAS.encode("utf-32"), r"encoded as UTF-32, expected UTF-8"),
        (COMMAS.encode("utf-16-le"), r"a NUL byte at byte 1 \(line 1\).*UTF-16"),
        (b"context,question,answer\nc,q,a\0b\n", r"a NUL byte at byte 29 \(line 2\)"),
    ],
)
def test_what_cannot_be_read_is_named(
    content: str | bytes, message: str, write: Write, tmp_path: Path, data: DataConfig
) -> None:
    write("own/train.csv", content)
    with pytest.raises(DataError, match=rf"(?s)train\.csv.*{message}"):
        rows(tmp_path / "own", data)
