"""Files in folders and object stores, and addresses."""

from __future__ import annotations

import io
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs

from ray_l4.errors import ClusterError, ConfigError
from ray_l4.store.storage import Storage, absolute_address, join_address, split_address, with_timeout
from tests.store.unreliable import BrokenConnectionError, Unreliable, mock


def storages(folder: Path) -> list[Storage]:
    """Return an empty folder of several kinds of file systems, with and without the ability to move files."""
    memory = mock()
    return [
        Storage(fs.LocalFileSystem(), str(folder / "local")),
        Storage(fs.SubTreeFileSystem(str(folder), fs.LocalFileSystem()), "subtree"),
        Storage(memory, "memory"),
        Storage(Unreliable(fs.LocalFileSystem(), objects=True), str(folder / "objects")),
    ]


def text(content: str) -> io.BytesIO:
    return io.BytesIO(content.encode())


@pytest.mark.parametrize("kind", range(4), ids=["local", "subtree", "memory", "objects"])
def test_files_are_written_read_and_removed_by_name(tmp_path: Path, kind: int) -> None:
    storage = storages(tmp_path)[kind]
    assert storage.sizes() == {}, "a missing folder counts as empty"
    storage.write("a/b.txt", text("first"))
    storage.write("a/b.txt", text("second one"))
    storage.write("c", text(""))
    assert storage.sizes() == {"a/b.txt": 10, "c": 0}
    assert storage.read("a/b.txt") == b"second one"
    storage.download("a/b.txt", tmp_path / "here")
    assert (tmp_path / "here").read_bytes() == b"second one"
    storage.remove("a/b.txt")
    storage.remove("a/b.txt")
    assert storage.sizes() == {"c": 0}


class Interrupted(io.RawIOBase):
    """A source that fails after its first bytes."""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        buffer[:4] = b"half"
        if self.has_begun:
            raise OSError("the disk is gone")
        self.has_begun = True
        return 4

    has_begun = False


@pytest.mark.parametrize("objects", [False, True], ids=["moved", "put"])
def test_a_source_that_fails_leaves_no_file(tmp_path: Path, objects: bool) -> None:
    storage = Storage(Unreliable(fs.LocalFileSystem(), objects=objects), str(tmp_path / "storage"))
    with pytest.raises(OSError, match="the disk is gone"):
        storage.write("new", Interrupted())
    assert storage.sizes() == {}


@pytest.mark.parametrize("heals", [False, True], ids=["permanently", "once"])
@pytest.mark.parametrize(("objects", "needed"), [(False, 4), (True, 2)], ids=["moved", "put"])
def test_a_broken_connection_leaves_the_older_version(tmp_path: Path, objects: bool, needed: int, heals: bool) -> None:
    """At every call: creating the folder, opening, writing, moving."""
    files = Unreliable(fs.LocalFileSystem(), objects=objects, heals=heals)
    storage = Storage(files, str(tmp_path))
    storage.write("file", text("old"))
    for num_calls in range(needed):
        files.fail_after(num_calls)
        with pytest.raises(BrokenConnectionError):
            storage.write("file", text("newer"))
        assert (tmp_path / "file").read_text() == "old"
    if heals:
        assert [path.name for path in tmp_path.iterdir()] == ["file"], "no incomplete file is left"
    files.fail_after(needed)
    storage.write("file", text("newer"))
    assert (tmp_path / "file").read_text() == "newer"


def test_a_missing_local_folder_is_an_error(tmp_path: Path) -> None:
    for address in (str(tmp_path / "nfs"), f"file://{tmp_path}/nfs"):
        with pytest.raises(ClusterError, match=r"storage_path: .*/nfs: no such folder\. Create it, or mount"):
            Storage.at(address, "run")
    assert not (tmp_path / "nfs").exists()
    for address in (str(tmp_path), f"file://{tmp_path}"):
        assert Storage.at(address, "run").local == tmp_path / "run"


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("ftp://host/x", r"cannot store at ftp://; expected a folder, or an address that begins with file://, s3://"),
        ("s3://bucket/x?colour=blue", "'colour'; expected a folder"),
    ],
)
def test_an_unsupported_address(address: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Storage.at(address, "run")


@pytest.mark.parametrize(
    ("address", "name", "joined"),
    [
        ("/nfs/runs", "one", "/nfs/runs/one"),
        ("s3://bucket/runs", "one", "s3://bucket/runs/one"),
        ("s3://bucket", "one", "s3://bucket/one"),
        ("s3://bucket/runs?region=eu", "one", "s3://bucket/runs/one?region=eu"),
        ("file:///nfs", "one", "file:///nfs/one"),
    ],
)
def test_addresses_are_joined_and_split(address: str, name: str, joined: str) -> None:
    assert join_address(address, name) == joined
    assert join_address(f"{address}/", name) == joined or "?" in address
    assert split_address(joined) == (address, name)


def test_a_relative_address_refers_to_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    assert absolute_address("runs") == str(tmp_path / "runs")
    assert absolute_address("~/runs") == "/home/somebody/runs"
    assert absolute_address("gs://bucket") == "gs://bucket"
    assert split_address("runs/one") == (str(tmp_path / "runs"), "one")


def test_passwords_are_not_shown() -> None:
    with pytest.raises(ConfigError) as caught:
        Storage.at("ftp://me:s3cret@host/x", "run")
    assert "s3cret" not in str(caught.value)


def test_waiting_is_bounded() -> None:
    hung = threading.Event()
    began = time.monotonic()
    with pytest.raises(TimeoutError, match=r"no answer in 0\.05 s"):
        with_timeout(0.05, lambda: hung.wait(30) and None)
    assert time.monotonic() - began < 10
    hung.set()
    with pytest.raises(ZeroDivisionError):
        with_timeout(30, lambda: 1 // 0 and None)
    done: list[int] = []
    with_timeout(30, lambda: done.append(1))
    assert done == [1]


def test_an_action_that_makes_progress_does_not_time_out() -> None:
    moved = 0

    def slow() -> None:
        nonlocal moved
        for _ in range(7):
            time.sleep(0.2)
            moved += 1

    with_timeout(0.5, slow, lambda: moved)
    assert moved == 7
