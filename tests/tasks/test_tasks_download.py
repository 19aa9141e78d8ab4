"""Download of a task's missing files, and the table of their sources."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import re
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

from ray_l4.errors import DataError
from ray_l4.tasks import download as room
from ray_l4.tasks.download import DownloadError, download
from ray_l4.tasks.download.checksum import checksum_of, matches
from ray_l4.tasks.download.upstream import ORIGIN, RemoteFile, all_files, remote_files
from ray_l4.tasks.files import find_or_none
from ray_l4.tasks.registry import TASKS
from tests.file_server import FileServer, serving

FILES = [file for task in TASKS for file in remote_files(task)]


def sha256(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """A server with a plain file and an archive, which together are the task ``toy``."""
    with tarfile.open(fileobj=(packed := io.BytesIO()), mode="w:bz2") as archive:
        for name in ("data/b.txt", "data/c.txt", "data/unwanted.txt"):
            info = tarfile.TarInfo(name)
            info.size = len(name)
            archive.addfile(info, io.BytesIO(name.encode()))
    contents = {"a.txt": b"plain text", "x/data.tar.bz2": packed.getvalue()}
    members = {"data/b.txt": "toy/b.txt", "data/c.txt": "toy/deep/c.txt"}
    toys = [
        RemoteFile("toy", "some/one", "1" * 40, "a.txt", sha256(contents["a.txt"]), destination="toy/a.txt"),
        RemoteFile("toy", "some/one", "1" * 40, "x/data.tar.bz2", sha256(packed.getvalue()), members=members),
    ]
    monkeypatch.setattr(room, "remote_files", lambda task: toys if task == "toy" else [])
    with serving() as state:
        state.files = {f"some/one/{'1' * 40}/{path}": content for path, content in contents.items()}
        yield state


def fetch(server: FileServer, raw: Path) -> list[str]:
    written = download("toy", raw, lambda *_: None, server.url)
    return [path.relative_to(raw).as_posix() for path in written]


def asked(server: FileServer) -> list[str]:
    return [path.rpartition("/")[2] for path, _, _ in server.requests]


def files_under(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


WHOLE = {"toy/a.txt": b"plain text", "toy/b.txt": b"data/b.txt", "toy/deep/c.txt": b"data/c.txt"}


def test_everything_is_fetched_once(server: FileServer, tmp_path: Path) -> None:
    assert fetch(server, tmp_path) == list(WHOLE)
    assert files_under(tmp_path) == WHOLE
    assert asked(server) == ["a.txt", "data.tar.bz2"]
    assert fetch(server, tmp_path) == []
    assert len(server.requests) == 2


def test_only_what_is_missing_is_fetched(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "a.txt.gz").write_bytes(gzip.compress(b"plain text"))
    (tmp_path / "toy" / "b.txt.bz2").write_bytes(bz2.compress(b"an edited one"))
    assert fetch(server, tmp_path) == ["toy/deep/c.txt"]
    assert asked(server) == ["data.tar.bz2"]
    assert sorted(files_under(tmp_path)) == ["toy/a.txt.gz", "toy/b.txt.bz2", "toy/deep/c.txt"]


def test_a_different_file_with_that_name_is_kept_and_reported(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "a.txt").write_bytes(b"mine")
    with pytest.raises(DownloadError, match=r"toy/a.txt exists but is not the published file .*Move it away"):
        fetch(server, tmp_path)
    assert files_under(tmp_path) == {"toy/a.txt": b"mine"}
    assert server.requests == []


def test_an_archive_that_was_fetched_before_is_not_fetched_again(server: FileServer, tmp_path: Path) -> None:
    """As after an interruption between download and extraction."""
    [content] = [content for path, content in server.files.items() if path.endswith("bz2")]
    (tmp_path / f".{'1' * 12}.data.tar.bz2").write_bytes(content)
    assert fetch(server, tmp_path) == list(WHOLE)
    assert asked(server) == ["a.txt"]
    assert files_under(tmp_path) == WHOLE


def test_an_archive_that_leads_outside_writes_nothing(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(packed := io.BytesIO(), "w") as archive:
        archive.writestr("good.txt", "good")
        archive.writestr("../../evil.txt", "evil")
    file = RemoteFile("toy", "r", "c" * 40, "e.zip", sha256(packed.getvalue()), members={"good.txt": "toy/good.txt"})
    monkeypatch.setattr(room, "remote_files", lambda _: [file])
    server.files = {f"r/{'c' * 40}/e.zip": packed.getvalue()}
    raw = tmp_path / "deep" / "raw"
    with pytest.raises(DataError, match=r"'../../evil.txt' would be written outside the target folder"):
        fetch(server, raw)
    assert all("evil" not in name and "good" not in name for name in files_under(tmp_path))


def test_every_task_of_the_papers_has_addresses() -> None:
    assert {file.task for file in all_files()} == {name for name in TASKS if not name.startswith("mini.")}
    assert len(FILES) == len(all_files())
    assert remote_files("mini.woz") == []


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.task}-{file.path}")
def test_the_table_is_well_formed(file: RemoteFile) -> None:
    assert re.fullmatch(r"sha256:[0-9a-f]{64}|git:[0-9a-f]{40}", file.checksum)
    assert re.fullmatch(r"[0-9a-f]{40}", file.commit)
    assert re.fullmatch(r"[\w.-]+/[\w.-]+", file.repository)
    assert file.url() == f"{ORIGIN}/{file.repository}/{file.commit}/{file.path}"
    assert file.url("http://mirror/") == f"http://mirror/{file.repository}/{file.commit}/{file.path}"
    assert bool(file.destination) != bool(file.members)
    for place in file.members.values() if file.members else [file.destination]:
        assert not PurePosixPath(place).is_absolute()
        assert ".." not in place


def test_no_two_files_have_the_same_destination() -> None:
    places = [place for file in FILES for place in (file.members.values() if file.members else [file.destination])]
    assert len(places) == len(set(places))


@pytest.mark.shared_data
def test_the_real_files_have_the_tables_checksums(shared_data: Path) -> None:
    checked = 0
    for file in FILES:
        if file.destination and (here := find_or_none(*_split(shared_data / "raw" / file.destination))):
            assert matches(here, file.checksum), file.destination
            checked += 1
    assert checked == 55  # all but the training texts of AG News and the members of the two archives


def _split(path: Path) -> tuple[Path, str]:
    return path.parent, path.name


def test_a_checksum_is_of_the_contents_however_packed(tmp_path: Path) -> None:
    for name, pack in (("a", bytes), ("a.gz", gzip.compress), ("a.bz2", bz2.compress)):
        path = tmp_path / name
        path.write_bytes(pack(b"hello\n"))
        assert matches(path, "git:ce013625030ba8dba906f756967f9e9ca394464a")  # echo hello | git hash-object --stdin
        assert matches(path, sha256(b"hello\n"))
        assert matches(path, checksum_of(path, "sha256"))  # of the compressed file itself
        assert not matches(path, sha256(b"hello"))
