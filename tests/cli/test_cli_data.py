"""``ray-l4 data``: downloads, and the columns of custom data."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from ray_l4.cli.data import app
from ray_l4.errors import ConfigError
from ray_l4.tasks.download.upstream import remote_files
from tests.cli.cli_fixtures import ray_l4, refused
from tests.file_server import FileServer, serving

DATA = 3

pytestmark = pytest.mark.end_to_end


@pytest.fixture
def mirror(shared_data: Path) -> Iterator[FileServer]:
    """Serve the real files of RNNLG's television domain."""
    with serving() as state:
        for file in remote_files("rnnlg.tv"):
            content = gzip.decompress((shared_data / "raw" / f"{file.destination}.gz").read_bytes())
            state.files[file.url("").lstrip("/")] = content
        yield state


@pytest.mark.shared_data
def test_a_task_is_downloaded_and_written(mirror: FileServer, tmp_path: Path) -> None:
    order = ["data", "prepare", "--download", "--task", "rnnlg.tv", "--raw", tmp_path / "raw", "--out", tmp_path / "o"]
    mirror.cuts = [100_000]
    result = ray_l4(*order, "--mirror", mirror.url)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("downloaded ") == 3
    assert "train.json" in result.stderr
    assert sum(sent for _, _, sent in mirror.requests) == sum(map(len, mirror.files.values()))  # no byte came twice
    assert pq.read_table(tmp_path / "o" / "rnnlg.tv" / "train.parquet").num_rows == 8442
    asked = len(mirror.requests)
    again = ray_l4(*order, "--mirror", mirror.url)
    assert again.returncode == 0, again.stderr
    assert "downloaded" not in again.stderr
    assert len(mirror.requests) == asked


@pytest.mark.shared_data
def test_a_wrong_file_is_refused(mirror: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = next(iter(mirror.files))
    mirror.files[path] = b"something else"
    monkeypatch.setenv("RAY_L4_MIRROR", mirror.url)
    monkeypatch.setenv("RAY_L4_DATA", str(tmp_path))
    result = ray_l4("data", "prepare", "--download", "--task", "rnnlg.tv", "--out", tmp_path / "o")
    refused(result, DATA, f"{mirror.url}/{path}", "wrong checksum: expected sha256:", "found sha256:")
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == []


def test_a_missing_file_is_reported_with_its_address(tmp_path: Path) -> None:
    with serving() as empty:
        result = ray_l4(
            *("data", "prepare", "--download", "--task", "woz.en", "--raw", tmp_path / "raw", "--out", tmp_path / "o"),
            *("--mirror", empty.url),
        )
        refused(result, DATA, f"{empty.url}/nmrksic/neural-belief-tracker", "HTTP status 404")
        assert len(empty.requests) == 1


def test_available_tasks_are_written_and_the_others_named(tmp_path: Path) -> None:
    with serving() as empty:
        result = ray_l4(
            "data", "prepare", "--download", "--raw", tmp_path / "raw", "--out", tmp_path / "o", "--mirror", empty.url
        )
    assert (tmp_path / "o" / "mini.woz" / "train.parquet").is_file()
    refused(result, DATA, "not everything could be downloaded", "woz.en: ", "wikisql: ", "yahoo: ", "HTTP status 404")


def failure(*arguments: object) -> Exception:
    """Return the error that a command raises, called in this process."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert isinstance(result.exception, ConfigError), result.exception
    return result.exception


def test_a_download_needs_a_folder_and_a_web_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_L4_DATA", raising=False)
    assert "give --raw DIR, or set RAY_L4_DATA" in str(failure("prepare", "--download"))
    order = ("prepare", "--download", "--task", "woz.en", "--raw", tmp_path)
    assert "ftp://x/nmrksic" in str(failure(*order, "--mirror", "ftp://x"))


def test_examples_are_not_written_into_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        message = str(failure("prepare", "--task", "mini.woz", "--out", out))
        assert message.startswith("--out ") and f"{tmp_path}/file is a file; expected a folder" in message


def test_columns_of_custom_data(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_text("code,country,capital\nfr,france,paris\n", encoding="utf-8")
    columns = ("--column", "context=country", "--column", "answer=capital", "--column", "id=code")
    shown = ray_l4("data", "show", "capitals", "--path", tmp_path, *columns, "--question", "what is the capital?")
    assert shown.returncode == 0, shown.stderr
    expected = '{"context": "france", "question": "what is the capital?", "answer": "paris", "sample_id": "fr"}'
    assert shown.stdout.count(expected) == 2


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("contxt=country", "--column contxt=country: unknown field 'contxt'. Did you mean 'context'?"),
        ("country", "--column country: expected FIELD=COLUMN, for instance context=country."),
        ("context=", "--column context=: expected FIELD=COLUMN, for instance context=country."),
    ],
)
def test_malformed_columns_are_refused(column: str, message: str, tmp_path: Path) -> None:
    assert str(failure("show", "capitals", "--path", tmp_path, "--column", column)) == message
