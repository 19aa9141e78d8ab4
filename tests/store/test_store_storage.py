"""Whole files in folders and object storages, and the addresses of those."""

from __future__ import annotations

import io
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs

from ray_l4.errors import ClusterError, ConfigError
from ray_l4.store.storage import Storage, absolute, join, public, split, within
from tests.store.unreliable import BrokenLineError, Unreliable, mock


def storages(folder: Path) -> list[Storage]:
    """The same folder in file systems that move, that cannot, and within another one."""
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
def test_files_come_and_go_by_name(tmp_path: Path, kind: int) -> None:
    storage = storages(tmp_path)[kind]
    assert storage.sizes() == {}, "a folder that is not there is empty"
    storage.write("a/b.txt", text("first"))
    storage.write("a/b.txt", text("second one"))
    storage.write("c", text(""))
    assert storage.sizes() == {"a/b.txt": 10, "c": 0}
    assert storage.read("a/b.txt") == b"second one"
    storage.fetch("a/b.txt", tmp_path / "here")
    assert (tmp_path / "here").read_bytes() == b"second one"
    storage.remove("a/b.txt")
    storage.remove("a/b.txt")
    assert storage.sizes() == {"c": 0}


class Interrupted(io.RawIOBase):
    """A source that ends with an error."""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        buffer[:4] = b"half"
        if self.tell_again:
            raise OSError("the disk is gone")
        self.tell_again = True
        return 4

    tell_again = False


@pytest.mark.parametrize("objects", [False, True], ids=["moved", "put"])
def test_what_cannot_be_read_to_its_end_is_not_there(tmp_path: Path, objects: bool) -> None:
    storage = Storage(Unreliable(fs.LocalFileSystem(), objects=objects), str(tmp_path / "there"))
    with pytest.raises(OSError, match="the disk is gone"):
        storage.write("new", Interrupted())
    assert storage.sizes() == {}


@pytest.mark.parametrize("heals", [False, True], ids=["for good", "once"])
@pytest.mark.parametrize(("objects", "needed"), [(False, 4), (True, 2)], ids=["moved", "put"])
def test_a_line_that_breaks_leaves_the_older_version(tmp_path: Path, objects: bool, needed: int, heals: bool) -> None:
    """Wherever it breaks: making the folder, opening, writing, moving."""
    line = Unreliable(fs.LocalFileSystem(), objects=objects, heals=heals)
    storage = Storage(line, str(tmp_path))
    storage.write("file", text("old"))
    for works in range(needed):
        line.breaks_after(works)
        with pytest.raises(BrokenLineError):
            storage.write("file", text("newer"))
        assert (tmp_path / "file").read_text() == "old"
    if heals:
        assert [path.name for path in tmp_path.iterdir()] == ["file"], "nothing half-written is left either"
    line.breaks_after(needed)
    storage.write("file", text("newer"))
    assert (tmp_path / "file").read_text() == "newer"


def test_a_folder_that_is_not_there_is_a_disk_that_is_not_mounted(tmp_path: Path) -> None:
    for address in (str(tmp_path / "nfs"), f"file://{tmp_path}/nfs"):
        with pytest.raises(ClusterError, match=r"storage_path: .*/nfs: no such folder here\. Make it, or mount"):
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
def test_an_address_of_another_kind(address: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Storage.at(address, "run")


@pytest.mark.parametrize(
    ("address", "name", "place"),
    [
        ("/nfs/runs", "one", "/nfs/runs/one"),
        ("s3://bucket/runs", "one", "s3://bucket/runs/one"),
        ("s3://bucket", "one", "s3://bucket/one"),
        ("s3://bucket/runs?region=eu", "one", "s3://bucket/runs/one?region=eu"),
        ("file:///nfs", "one", "file:///nfs/one"),
    ],
)
def test_addresses_are_joined_and_split(address: str, name: str, place: str) -> None:
    assert join(address, name) == place
    assert join(f"{address}/", name) == place or "?" in address
    assert split(place) == (address, name)


def test_a_relative_address_is_one_of_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    assert absolute("runs") == str(tmp_path / "runs")
    assert absolute("~/runs") == "/home/somebody/runs"
    assert absolute("gs://bucket") == "gs://bucket"
    assert split("runs/one") == (str(tmp_path / "runs"), "one")


def test_passwords_are_not_shown() -> None:
    assert public("s3://key:s3cret@bucket/x: no") == "s3://key:***@bucket/x: no"
    assert public("abfs://container@account/x") == "abfs://container@account/x"
    with pytest.raises(ConfigError) as caught:
        Storage.at("ftp://me:s3cret@host/x", "run")
    assert "s3cret" not in str(caught.value)


def test_waiting_is_bounded() -> None:
    hung = threading.Event()
    began = time.monotonic()
    with pytest.raises(TimeoutError, match=r"no answer in 0\.05 s"):
        within(0.05, lambda: hung.wait(30) and None)
    assert time.monotonic() - began < 10
    hung.set()
    with pytest.raises(ZeroDivisionError):
        within(30, lambda: 1 // 0 and None)
    done: list[int] = []
    within(30, lambda: done.append(1))
    assert done == [1]


def test_what_goes_on_is_waited_for_however_long_it_takes() -> None:
    moved = 0

    def slow() -> None:
        nonlocal moved
        for _ in range(7):
            time.sleep(0.2)
            moved += 1

    within(0.5, slow, lambda: moved)
    assert moved == 7
