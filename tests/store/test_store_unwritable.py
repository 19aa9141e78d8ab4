"""Storage that refuses a file is named with the file and a remedy, whichever part of a run writes it."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ray_l4.config.cluster import ClusterConfig
from ray_l4.errors import ConfigError, RunDirectoryError, UnwritableError
from ray_l4.monitor.event_file import EventFile
from ray_l4.report.out_file import write_out
from ray_l4.run.run_log import logging_to
from ray_l4.store import atomic, records
from ray_l4.store.run_directory import RunDirectory
from ray_l4.store.unwritable import naming_unwritable
from tests.run.run_fixtures import experiment

NUMBERS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ESTALE, errno.ENOSPC, errno.EDQUOT)

WRITERS: dict[str, Callable[[Path], object]] = {
    "text": lambda path: atomic.write_text(path, "text"),
    "table": lambda path: atomic.write_table(path, pa.table({"a": [1]})),
    "weights": lambda path: atomic.write_file(path, lambda part: records.write_bytes(part, np.zeros(9, np.uint8))),
    "folder": lambda path: atomic.write_folder(path, lambda folder: (folder / "a").write_text("a")),
    "curves": lambda path: EventFile(path, 0),
}


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("name", WRITERS)
def test_every_writer_names_its_file_and_a_remedy(
    name: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As root no permission binds, so the error of the system is put in its place."""

    def refuse(path: Path, *_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(RunDirectoryError) as caught:
        WRITERS[name](tmp_path / "run" / "result")
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}/run/result") and "cannot be written" in message
    assert "ray-l4 resume RUN_DIR" in message and "--run-dir" in message
    assert caught.value.exit_code == RunDirectoryError.exit_code


def test_a_file_that_cannot_be_read_is_not_blamed_on_the_one_written(tmp_path: Path) -> None:
    error = PermissionError(errno.EACCES, "no", "/elsewhere/source")
    with pytest.raises(PermissionError), naming_unwritable(tmp_path / "a" / "target"):
        raise error
    with pytest.raises(ValueError, match="no file"), naming_unwritable(tmp_path / "target"):
        raise ValueError("no file")


def test_a_file_in_the_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "scores").write_text("")
    with pytest.raises(UnwritableError, match=r"scores/a\.json: cannot be written .* Remove what is in its place"):
        atomic.write_text(tmp_path / "scores" / "a.json", "{}")


def test_a_file_that_the_user_named_is_an_error_of_the_option(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=rf"--out {tmp_path}/file/x: cannot be written"):
        write_out("text", tmp_path / "file" / "x")


def test_a_run_directory_that_cannot_be_created_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch = Path.touch

    def refuse(path: Path, *arguments: Any, **options: Any) -> None:
        if path.name == ".claim":
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        touch(path, *arguments, **options)

    monkeypatch.setattr(Path, "touch", refuse)
    with pytest.raises(RunDirectoryError, match=r"run: cannot be created \(Read-only file system\)\. .*mount it"):
        RunDirectory.create(tmp_path / "run", experiment(), ClusterConfig(), {})


def test_logs_on_storage_that_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Their file is named before the run; lines that are refused later are left out without a traceback."""
    run = RunDirectory(tmp_path)
    (tmp_path / "logs").write_text("")
    with pytest.raises(UnwritableError, match=r"logs/\w+\.log: cannot be written"), logging_to(run):
        pass
    (tmp_path / "logs").unlink()

    def refuse(*_: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with logging_to(run):
        monkeypatch.setattr(logging.FileHandler, "flush", refuse)
        logging.getLogger("ray_l4.coordinator").warning("refused")
        monkeypatch.undo()
        logging.getLogger("ray_l4.coordinator").warning("taken")
    assert "taken" in (tmp_path / "logs/coordinator.log").read_text()
    assert capsys.readouterr().err == ""
