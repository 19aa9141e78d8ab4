from __future__ import annotations

import bz2
import gzip
from collections.abc import Callable
from pathlib import Path

import pytest

from ray_l4.errors import DataError
from ray_l4.tasks.delimited import read_csv
from ray_l4.tasks.files import (
    MissingFileError,
    find,
    read_json,
    read_json_list,
    read_text,
    require_columns,
)
from ray_l4.tasks.text_lines import read_lines

Write = Callable[..., Path]


@pytest.mark.parametrize(("suffix", "pack"), [("", bytes), (".gz", gzip.compress), (".bz2", bz2.compress)])
def test_plain_and_compressed_files_read_the_same(suffix: str, pack: Callable[[bytes], bytes], tmp_path: Path) -> None:
    (tmp_path / f"a.txt{suffix}").write_bytes(pack("café\nline".encode()))
    assert read_text(find(tmp_path, "a.txt")) == "café\nline"


def test_the_first_of_several_names_wins(write: Write, tmp_path: Path) -> None:
    write("second.json", "{}")
    assert find(tmp_path, "first.json", "second.json").name == "second.json"
    write("first.json.gz", "{}")
    assert find(tmp_path, "first.json", "second.json").name == "first.json.gz"


def test_a_missing_file_names_the_nearest_one(write: Write, tmp_path: Path) -> None:
    write("train_set.csv", "x")
    with pytest.raises(MissingFileError, match=r"no file trainset.csv .*Did you mean 'train_set.csv'"):
        find(tmp_path, "trainset.csv")


def test_a_missing_or_empty_folder_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"no such folder; expected it to contain a.json or b.json"):
        find(tmp_path / "none", "a.json", "b.json")
    with pytest.raises(MissingFileError, match=r"contains no files; expected a.json"):
        find(tmp_path, "a.json")


def test_a_file_that_is_gone_is_missing(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="no such file"):
        read_text(tmp_path / "gone.txt")


def test_text_that_is_not_utf8_is_located(write: Write) -> None:
    path = write("latin.csv", b"mr,ref\nok,ok\ncaf\xe9,x\n")
    with pytest.raises(DataError, match=r"latin.csv: not UTF-8 at byte 16 \(line 3\): 0xe9"):
        read_text(path)


def test_a_byte_order_mark_is_no_text(write: Write) -> None:
    assert read_text(write("bom.csv", b"\xef\xbb\xbfa,b")) == "a,b"


@pytest.mark.parametrize("name", ["a.gz", "a.bz2"])
def test_damaged_compression_is_a_data_error(name: str, tmp_path: Path) -> None:
    pack = gzip.compress if name == "a.gz" else bz2.compress
    whole = pack(b"hello" * 1000)
    for damaged in (b"no archive", whole[: len(whole) // 2]):
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(DataError, match="cannot be read"):
            read_text(tmp_path / name)


def test_json_errors_are_located(write: Write) -> None:
    with pytest.raises(DataError, match=r"not JSON at line 2, column 3"):
        read_json(write("a.json", "{\n  x}"))
    with pytest.raises(DataError, match="is empty"):
        read_json(write("b.json", "  \n"))


def test_a_list_is_expected_and_must_hold_something(write: Write) -> None:
    assert read_json_list(write("a.json", [1])) == [1]
    with pytest.raises(DataError, match="expected a JSON list, found dict"):
        read_json_list(write("b.json", {}))
    with pytest.raises(DataError, match="an empty list"):
        read_json_list(write("c.json", []))


def test_lines_are_numbered_and_blank_ones_skipped(write: Write) -> None:
    # A line separator that JSON leaves unescaped must not end a line.
    assert list(read_lines(write("a.jsonl", "one\r\n\n  \ntwo\u2028same\n"))) == [(1, "one"), (4, "two\u2028same")]
    with pytest.raises(DataError, match="is empty; expected one record per line"):
        list(read_lines(write("b.jsonl", "\n \n")))
    for name in ("none.jsonl", "none.jsonl.gz", "none.jsonl.bz2"):
        with pytest.raises(DataError, match="is empty"):
            list(read_lines(write(name, b"")))


@pytest.mark.parametrize("damaged", [b"one\ntwo\n\xff\n", b"one\nt\0wo\n", b"one\ntwo \xe2\x82"])
def test_a_damaged_file_is_refused_before_its_first_line(damaged: bytes, write: Write) -> None:
    path = write("a.jsonl", damaged)
    with pytest.raises(DataError) as by_line:
        next(read_lines(path))
    with pytest.raises(DataError) as whole:
        read_text(path)
    assert str(by_line.value) == str(whole.value)


def test_csv_records_carry_their_line(write: Write) -> None:
    names, records = read_csv(write("a.csv", 'mr,ref\r\n"x\r\ny",1\nz,2\nshort\n'))
    assert names == ["mr", "ref"]
    assert list(records) == [
        (3, {"mr": "x\ny", "ref": "1"}),
        (4, {"mr": "z", "ref": "2"}),
        (5, {"mr": "short", "ref": None}),
    ]


def test_csv_errors_are_located(write: Write) -> None:
    with pytest.raises(DataError, match="is empty; expected a header"):
        read_csv(write("a.csv", ""))
    _, records = read_csv(write("b.csv", 'a\nfine\n"never closed\n'))
    with pytest.raises(DataError, match=r"b.csv: not CSV after line 2: unexpected end"):
        list(records)


def test_a_missing_column_names_the_nearest(write: Write) -> None:
    with pytest.raises(DataError, match=r"no column 'context'. Did you mean 'contxt'"):
        require_columns(Path("f.csv"), ["contxt", "answer"], "answer", "context")
