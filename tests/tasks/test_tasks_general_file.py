"""The file of general text: which formats and columns are read, and what is refused."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_l4.errors import DataError
from ray_l4.tasks.files import MissingFileError
from ray_l4.tasks.general_file import check_general_file, read_general_text

ROWS = [f'Row {number} has a comma, a "quote" and\na second line. ' * 3 for number in range(3)]
JOINED = "\n\n".join(ROWS)
MANY = 10_000


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    data = text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def csv(header: list[str], rows: list[list[str]], separator: str = ",") -> str:
    quoted = [['"' + cell.replace('"', '""') + '"' for cell in row] for row in rows]
    return "\n".join([separator.join(header), *(separator.join(row) for row in quoted)]) + "\n"


@pytest.mark.parametrize("name", ["text.txt", "text.v2.txt", "text.txt.gz"])
def test_a_text_file_is_read_as_it_is(tmp_path: Path, name: str) -> None:
    assert read_general_text(written(tmp_path, name, "\ufeff" + JOINED), MANY) == JOINED


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", csv(["id", "text", "article"], [[str(i), row, "other"] for i, row in enumerate(ROWS)])),
        ("a.csv.gz", csv(["article", "highlights", "id"], [[row, "other", str(i)] for i, row in enumerate(ROWS)])),
        ("a.csv", csv(["id", "body"], [[str(i), row] for i, row in enumerate(ROWS)])),
        ("a.tsv", csv(["name", "text"], [["other", row] for row in ROWS], "\t")),
        ("a.jsonl", "".join(json.dumps({"n": 3, "body": row}) + "\n" for row in ROWS)),
        ("a.jsonl", "".join(json.dumps({"title": "a", "text": row}) + "\n" for row in [ROWS[0], "", *ROWS[1:]])),
        ("a.jsonl.gz", "".join(json.dumps({"text": row}) + "\n" for row in [ROWS[0], None, *ROWS[1:]])),
    ],
)
def test_the_column_of_a_table(tmp_path: Path, name: str, text: str) -> None:
    assert read_general_text(written(tmp_path, name, text), MANY) == JOINED


def test_parquet_files_and_folders(tmp_path: Path) -> None:
    pq.write_table(pa.table({"n": [1, 2, 3], "words": ROWS}), tmp_path / "a.parquet")
    assert read_general_text(tmp_path / "a.parquet", MANY) == JOINED
    folder = tmp_path / "parts.parquet"
    folder.mkdir()
    for number, row in enumerate(ROWS):
        pq.write_table(pa.table({"text": [row], "other": ["words"]}), folder / f"{number}.parquet")
    assert read_general_text(folder, MANY) == JOINED


@pytest.mark.parametrize("kind", [".txt", ".jsonl"])
def test_only_the_beginning_is_read(tmp_path: Path, kind: str) -> None:
    words = "word " * 10_000
    lines = json.dumps({"text": words}) + "\n" + json.dumps({"text": 3}) + "\n"
    path = written(tmp_path, f"long{kind}", words if kind == ".txt" else lines)
    assert read_general_text(path, 100) == words[:6400], "64 characters for a token; the second row is not looked at"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("short.txt", "Too little.", r"short.txt has 11 bytes of text.*100 tokens"),
        ("blank.txt", " \n", r"0 bytes of text"),
        ("empty.csv", "", "empty"),
        ("empty.jsonl", "", "empty"),
        ("none.csv", "text\n", "0 bytes of text"),
        ("two.csv", csv(["one", "two"], [["words", "words"]]), r"columns 'one', 'two'; expected a column 'text'"),
        ("numbers.csv", csv(["one", "two"], [["1", "2.5"]]), r"columns 'one', 'two'"),
        ("number.jsonl", '{"text": 3}\n', r"line 1: column 'text' holds int"),
        ("broken.jsonl", '{"text": "a"}\n{"text"\n', r"general: .*1 records cannot be read .broken.jsonl, line 2: not"),
        ("page.html", JOINED, r"of another kind; expected a file .txt"),
        ("archive.parquet.gz", JOINED, "of another kind"),
        ("nosuffix", JOINED, "of another kind"),
        ("damaged.parquet", JOINED, "cannot be read as Parquet"),
    ],
)
def test_what_cannot_be_used_is_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_general_text(written(tmp_path, name, text), MANY)


def test_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(("caf\xe9 " * 50).encode("latin-1"))
    with pytest.raises(DataError, match=r"latin.txt: not UTF-8 at byte 3"):
        read_general_text(tmp_path / "latin.txt", MANY)


@pytest.mark.parametrize("read", [check_general_file, lambda path: read_general_text(path, MANY)])
def test_a_file_that_is_not_there(tmp_path: Path, read: Callable[[Path], object]) -> None:
    with pytest.raises(MissingFileError, match=r"evaluation.general: no file .*gone.txt; expected a file .txt, .csv"):
        read(tmp_path / "gone.txt")
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="is a folder"):
        read(tmp_path / "folder")


@pytest.mark.shared_data
def test_the_news_articles(shared_data: Path) -> None:
    text = read_general_text(shared_data / "raw" / "cnndm" / "test_500.csv.gz", 1000)
    assert len(text) == 64_000
    assert text.startswith("(CNN)The Palestinian Authority officially became")
