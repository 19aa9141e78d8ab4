"""The lock of a run directory, also on storage that serves no locks."""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from ray_l4.errors import RunDirectoryError, UnwritableError
from ray_l4.store.lock import LOCK, is_locked, locked

HELD = f"{LOCK}.held"


@pytest.fixture(params=[errno.ENOLCK, errno.EOPNOTSUPP])
def without_locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system answers as for NFS without a lock service."""
    original = fcntl.flock

    def flock(file: Any, operation: int) -> None:
        if Path(file.name).name == LOCK and request.param is not None:
            raise OSError(request.param, os.strerror(request.param))
        original(file, operation)

    monkeypatch.setattr(fcntl, "flock", flock)


def test_a_file_is_the_lock_where_none_is_served(tmp_path: Path, without_locks: None) -> None:
    with locked(tmp_path):
        assert (tmp_path / HELD).read_text() == f"process {os.getpid()} on {platform.node()}"
        expected = rf"in use by process {os.getpid()} on .*If that process has ended, remove {tmp_path}/{HELD}"
        with pytest.raises(RunDirectoryError, match=expected), locked(tmp_path):
            pass
        assert (tmp_path / HELD).exists(), "the other one's attempt changes nothing"
    assert not (tmp_path / HELD).exists()


@pytest.mark.parametrize("without_locks", [None, errno.ENOLCK], indirect=True)
def test_one_waits_for_a_lock_that_is_about_to_be_free(tmp_path: Path, without_locks: None) -> None:
    ended = threading.Event()

    def hold() -> None:
        with locked(tmp_path):
            held.set()
            time.sleep(0.5)
            ended.set()

    held, holder = threading.Event(), threading.Thread(target=hold)
    holder.start()
    assert held.wait(10.0)
    with pytest.raises(RunDirectoryError, match="in use by"), locked(tmp_path, patience=0.1):
        pass
    assert not ended.is_set()
    with locked(tmp_path, patience=10.0):
        assert ended.is_set()
    holder.join()


@pytest.mark.parametrize("mine", [True, False])
def test_a_lock_that_was_left_behind(tmp_path: Path, without_locks: None, mine: bool) -> None:
    """By a process that was killed: on this machine it is seen to be gone, on another one it may be at work."""
    gone = os.fork()
    if not gone:
        os._exit(0)
    os.waitpid(gone, 0)
    (tmp_path / HELD).write_text(f"process {gone} on {platform.node() if mine else 'elsewhere'}")
    if mine:
        with locked(tmp_path):
            assert f"process {os.getpid()} " in (tmp_path / HELD).read_text()
    else:
        with pytest.raises(RunDirectoryError, match=f"process {gone} on elsewhere"), locked(tmp_path):
            pass


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EIO])
def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(path: Path, *_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UnwritableError, match=rf"{tmp_path}/\.lock: cannot be written"), locked(tmp_path):
        pass


def test_a_lock_that_fails_otherwise_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(RunDirectoryError, match=r"\.lock: cannot be locked \(Input/output error\)"), locked(tmp_path):
        pass


@pytest.mark.parametrize("without_locks", [None, errno.ENOLCK], indirect=True)
def test_whether_a_lock_is_held_can_be_asked(tmp_path: Path, without_locks: None) -> None:
    assert not is_locked(tmp_path)
    with locked(tmp_path):
        assert is_locked(tmp_path)
        assert not is_locked(tmp_path, "other")
    assert not is_locked(tmp_path)
    with locked(tmp_path):  # asking has taken nothing
        pass
