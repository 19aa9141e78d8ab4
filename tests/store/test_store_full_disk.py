"""A full disk is recognised in whatever error it caused, and named with the file and a remedy."""

from __future__ import annotations

import errno
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from ray_l4.errors import RunDirectoryError
from ray_l4.store import atomic, records
from ray_l4.store.full_disk import is_full_disk, naming_full_disk

FULL = Path("/dev/full")
"""A device on which every write fails as on a full disk."""


def caused(error: Exception) -> Exception:
    try:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as cause:
            raise error from cause
    except type(error) as raised:
        return raised


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), True),
        (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), True),
        (OSError("[Errno 28] Error writing bytes to file. Detail: [errno 28] No space left on device"), True),
        (Exception("I/O error: No space left on device (os error 28)"), True),  # a library in Rust
        (RuntimeError("write failed: Disk quota exceeded"), True),
        (caused(ValueError("could not write")), True),
        (OSError(errno.EFBIG, os.strerror(errno.EFBIG)), True),
        (Exception("File too large (os error 27)"), True),
        (OSError(errno.EACCES, os.strerror(errno.EACCES)), False),
        (ValueError("28"), False),
    ],
)
def test_it_is_recognised_in_any_error(error: Exception, full: bool) -> None:
    assert is_full_disk(error) == full


WRITERS: dict[str, Callable[[Path], None]] = {
    "text": lambda path: atomic.write_text(path, "text"),
    "json": lambda path: atomic.write_json(path, {}),
    "table": lambda path: atomic.write_table(path, pa.table({"a": list(range(1000))})),
    "bytes": lambda path: atomic.write_file(path, lambda part: records.write_bytes(part, np.zeros(1 << 20, np.uint8))),
    "folder": lambda path: atomic.write_folder(path, lambda folder: (folder / "a").write_text("a")),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_writer_names_what_it_could_not_write(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real errors of real writes: every file that is opened is the full device."""
    path = tmp_path / "run" / "result"
    path.parent.mkdir()
    for target in (path, path.with_name(f".result.{os.getpid()}.part")):
        if name != "folder":
            target.symlink_to(FULL)
    if name == "folder":
        made = Path.mkdir

        def mkdir(folder: Path, *arguments: object, **options: bool) -> None:
            made(folder, *arguments, **options)  # type: ignore[arg-type]
            if folder.name.endswith(".part"):
                (folder / "a").symlink_to(FULL)

        monkeypatch.setattr(Path, "mkdir", mkdir)
    with pytest.raises(RunDirectoryError) as caught, naming_full_disk(path):
        WRITERS[name](path)
    message = str(caught.value)
    assert message.startswith(f"{path}: cannot be written, because the disk is full (")
    assert "MiB are free" in message and "ray-l4 resume" in message
    assert not list(path.parent.glob("*.part"))


@pytest.mark.parametrize("name", WRITERS)
def test_a_limit_on_the_size_of_files_is_named_as_such(name: str, tmp_path: Path) -> None:
    path = tmp_path / "run" / "result"
    path.parent.mkdir()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        with pytest.raises(RunDirectoryError) as caught:
            WRITERS[name](path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    message = str(caught.value)
    assert message.startswith(f"{path}: cannot be written, because it would be larger than files may be here. ")
    assert "ulimit -f" in message and "disk is full" not in message
    assert not list(path.parent.iterdir())


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), naming_full_disk(tmp_path):
        raise PermissionError(errno.EACCES, "no")
