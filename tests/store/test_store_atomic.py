"""Atomic writes: files and folders are complete or absent, whatever happens to the writer."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_l4.errors import UnwritableError
from ray_l4.store import atomic
from ray_l4.store.atomic import (
    finish_replacements,
    matching,
    remove_if_there,
    write_file,
    write_folder,
    write_json,
    write_table,
    write_text,
)


def names(folder: Path) -> list[str]:
    """Return the names in a folder, including hidden ones."""
    return sorted(path.name for path in folder.iterdir())


def fails_after(content: str) -> Callable[[Path], None]:
    """Return a writer that fails halfway."""

    def write(path: Path) -> None:
        target = path / "half" if path.is_dir() else path
        target.write_text(content, encoding="utf-8")
        raise OSError("disk full")

    return write


def test_missing_folders_are_created(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file.txt"
    write_text(path, "größer\n")
    assert path.read_bytes() == "größer\n".encode()
    assert names(path.parent) == ["file.txt"], "no temporary file is left"


def test_a_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "a long first version")
    write_text(path, "short")
    assert path.read_text() == "short"
    assert names(tmp_path) == ["file.txt"]


def test_a_failed_write_leaves_the_old_file_and_no_temporary_one(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "old")
    with pytest.raises(OSError, match="disk full"):
        write_file(path, fails_after("new"))
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file.txt"]


def test_a_failed_write_of_a_new_file_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="disk full"):
        write_file(tmp_path / "file.txt", fails_after("new"))
    assert names(tmp_path) == []


def test_a_reader_never_sees_an_incomplete_file(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "old")
    seen: list[str] = []

    def slow(temporary: Path) -> None:
        for text in ("n", "ne", "new"):
            temporary.write_text(text)
            seen.append(path.read_text())

    write_file(path, slow)
    assert seen == ["old", "old", "old"]
    assert path.read_text() == "new"


def test_a_killed_process_leaves_the_old_file(tmp_path: Path) -> None:
    """No handler runs when a process is killed, yet the file stays complete."""
    path = tmp_path / "file.txt"
    write_text(path, "old")
    program = (
        "import os, sys; from pathlib import Path; from ray_l4.store.atomic import write_file\n"
        "def die(temporary): temporary.write_text('half'); os.kill(os.getpid(), 9)\n"
        "write_file(Path(sys.argv[1]), die)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], check=False)
    assert done.returncode == -9
    assert path.read_text() == "old"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(value=json_values)
def test_json_round_trip(tmp_path_factory: pytest.TempPathFactory, value: object) -> None:
    path = tmp_path_factory.getbasetemp() / "value.json"
    write_json(path, value)
    assert json.loads(path.read_text(encoding="utf-8")) == value


def test_json_is_readable(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"task": "größe", "score": 1.5})
    assert (tmp_path / "x.json").read_text(encoding="utf-8") == '{\n  "task": "größe",\n  "score": 1.5\n}\n'


def test_a_value_that_is_not_json_leaves_the_old_file(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", [1])
    with pytest.raises(TypeError):
        write_json(tmp_path / "x.json", {"path": tmp_path})
    assert json.loads((tmp_path / "x.json").read_text()) == [1]
    assert names(tmp_path) == ["x.json"]


def test_table_round_trip(tmp_path: Path) -> None:
    table = pa.table({"step": pa.array([1, 2], pa.int32()), "ids": [[1, 2], []]})
    write_table(tmp_path / "steps" / "t.parquet", table)
    assert pq.read_table(tmp_path / "steps" / "t.parquet").equals(table)
    assert names(tmp_path / "steps") == ["t.parquet"]


def two_files(content: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "one").write_text(content)
        (folder / "sub").mkdir()
        (folder / "sub" / "two").write_text(content)

    return write


def test_a_folder_is_written_completely(tmp_path: Path) -> None:
    write_folder(tmp_path / "a" / "folder", two_files("x"))
    assert (tmp_path / "a" / "folder" / "sub" / "two").read_text() == "x"
    assert names(tmp_path / "a") == ["folder"]


def test_a_folder_replaces_the_older_one_with_all_its_files(tmp_path: Path) -> None:
    write_folder(tmp_path / "folder", lambda folder: (folder / "stale").touch())
    write_folder(tmp_path / "folder", two_files("new"))
    assert names(tmp_path / "folder") == ["one", "sub"]
    assert names(tmp_path) == ["folder"]


@pytest.mark.parametrize("existed", [False, True])
def test_a_failed_write_leaves_the_older_folder(tmp_path: Path, existed: bool) -> None:
    if existed:
        write_folder(tmp_path / "folder", two_files("old"))
    with pytest.raises(OSError, match="disk full"):
        write_folder(tmp_path / "folder", fails_after("new"))
    assert names(tmp_path) == (["folder"] if existed else [])
    if existed:
        assert (tmp_path / "folder" / "one").read_text() == "old"


def test_leftovers_of_an_earlier_write_do_not_get_into_the_folder(tmp_path: Path) -> None:
    """Neither that of this version, nor that of an earlier one, whose names had no random part."""
    for name in (f".folder.{os.getpid()}.part", f".folder.{os.getpid()}-0123abcd.part", ".folder.7-0123abcd.gone"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").touch()
    (tmp_path / ".table.parquet.7-0123abcd.part").touch()
    (tmp_path / ".hidden").touch()
    write_folder(tmp_path / "folder", two_files("new"))
    assert names(tmp_path / "folder") == ["one", "sub"]
    finish_replacements(tmp_path)
    assert names(tmp_path) == [".hidden", "folder"]


def test_a_replaced_folder_is_there_at_any_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux exchanges the two names in one step; no other call may move the older folder away."""
    write_folder(tmp_path / "folder", two_files("old"))
    monkeypatch.setattr(Path, "replace", lambda *_: pytest.fail("moved"))
    write_folder(tmp_path / "folder", two_files("new"))
    assert (tmp_path / "folder/one").read_text() == "new"
    assert names(tmp_path) == ["folder"]


class Killed(BaseException):
    """The process ends: no handler of errors may help."""


@pytest.mark.parametrize("calls", [1, 2])
def test_a_replacement_that_was_cut_off_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: int
) -> None:
    """On storage that cannot exchange names: killed after the first or the second renaming."""
    path = tmp_path / "states" / "folder"
    write_folder(path, two_files("old"))
    replace, done = Path.replace, [0]

    def killed(source: Path, target: Path) -> None:
        replace(source, target)
        done[0] += 1
        if done[0] == calls:
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(atomic, "exchange", lambda *_: False)
        patched.setattr(Path, "replace", killed)
        patched.setattr("shutil.rmtree", lambda *_, **__: None)
        with pytest.raises(Killed):
            write_folder(path, two_files("new"))
    assert path.exists() == (calls == 2)
    finish_replacements(tmp_path / "states")
    assert (path / "one").read_text() == ("old" if calls == 1 else "new")
    assert names(path.parent) == ["folder"]


def test_names_and_contents_are_forced_to_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a power failure a file that was written is there: its folder is synchronised after the renaming."""
    synchronised: list[str] = []
    original = os.fsync

    def fsync(opened: int) -> None:
        synchronised.append(str(Path(f"/proc/self/fd/{opened}").readlink()))
        original(opened)

    monkeypatch.setattr(os, "fsync", fsync)
    write_text(tmp_path / "file", "x")
    assert synchronised[-1] == str(tmp_path) and ".file." in synchronised[0]
    write_folder(tmp_path / "folder", two_files("x"))
    assert synchronised[-1] == str(tmp_path) and len(synchronised) == 2 + 3 + 1 + 1


@pytest.mark.parametrize("supported", [True, False])
def test_storage_that_cannot_synchronise_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, supported: bool
) -> None:
    def fsync(opened: int) -> None:
        if Path(f"/proc/self/fd/{opened}").is_dir():
            raise OSError(errno.EINVAL if supported else errno.EIO, "no")

    monkeypatch.setattr(os, "fsync", fsync)
    with nullcontext() if supported else pytest.raises(UnwritableError, match="file: cannot be written"):
        write_text(tmp_path / "file", "x")


def test_a_folder_is_removed_with_those_that_it_leaves_empty(tmp_path: Path) -> None:
    for name in ("a/b/c", "a/b/d", "e/f/g"):
        (tmp_path / "top" / name).mkdir(parents=True)
        (tmp_path / "top" / name / "file").write_text("x")
    remove_if_there(tmp_path / "top/a/b/c")
    assert names(tmp_path / "top/a/b") == ["d"]
    remove_if_there(tmp_path / "top/e/f/g")
    assert names(tmp_path / "top") == ["a"]
    remove_if_there(tmp_path / "top/a/b/d")
    assert names(tmp_path / "top") == [], "the folder around all of them stays"
    remove_if_there(tmp_path / "top/a/b/d")


def test_a_path_without_a_name_is_named_as_a_folder() -> None:
    with pytest.raises(UnwritableError, match=r"^\.: cannot be written \(Is a directory\)"):
        write_text(Path(), "text")


def test_folders_that_another_process_removes_are_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stage-0", "stage-1"):
        (tmp_path / name / "epoch-1").mkdir(parents=True)
    (tmp_path / "stage-2").touch()
    assert matching(tmp_path, "*/epoch-*") == [tmp_path / name / "epoch-1" for name in ("stage-0", "stage-1")]
    scan = os.scandir

    def scan_slowly(folder: str | Path | int) -> object:
        if folder in (str(tmp_path / "stage-0"), tmp_path / "stage-0"):
            monkeypatch.setattr(os, "scandir", scan)
            shutil.rmtree(folder)
        return scan(folder)

    monkeypatch.setattr(os, "scandir", scan_slowly)
    assert matching(tmp_path, "*/epoch-*") == [tmp_path / "stage-1" / "epoch-1"]
    assert matching(tmp_path / "gone", "*") == []
