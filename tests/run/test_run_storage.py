"""A run on storage that refuses or is slow: one message that names the file, and nothing lost."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from typing import Any

import pytest

from ray_l4.errors import RunDirectoryError
from ray_l4.store.run_directory import RunDirectory
from tests.run import run_fixtures as small

CONFIG = small.quick("l4", checkpoint={"every_steps": 8})

REFUSED = [
    ("stage-1/epoch-3/student-1", errno.EROFS),  # a checkpoint, by the thread that writes them
    ("stage-1.steps-", errno.ENOSPC),  # a state, by the same thread
    ("stage-1.epoch-2.parquet", errno.EIO),
    ("stage-1.parquet", errno.EACCES),  # replay
    ("scores/stage-0", errno.EDQUOT),
    ("state.json", errno.ESTALE),
]
"""A part of the path that is refused once, and the error."""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return small.complete_run(CONFIG, small.cluster("in_process"), tmp_path_factory.mktemp("runs") / "expected")[0]


def figures(run: RunDirectory) -> list[dict[str, Any]]:
    return [{name: row[name] for name in row if not name.endswith("_seconds")} for row in run.step_figures()]


@pytest.mark.parametrize(("part", "number"), REFUSED)
def test_a_run_ends_with_the_file_and_goes_on_later(
    part: str, number: int, undisturbed: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = small.cluster("in_process")
    setup, run = small.new_run(CONFIG, profile, tmp_path / "run")
    replace = Path.replace

    def refuse(source: Path, target: Path) -> Path:
        if part in str(target):
            raise OSError(number, os.strerror(number), str(source), None, str(target))
        return replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", refuse)
        with pytest.raises(RunDirectoryError) as caught:
            small.finish(small.start(setup, profile, run))
    message = str(caught.value)
    assert message.startswith(str(run.path)) and part in message and "cannot be written" in message
    small.finish(small.start(setup, profile, run))
    small.assert_equal(run, undisturbed)
    assert figures(run) == figures(undisturbed)
    assert not list(run.path.rglob("*.part"))


def test_curves_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setup, run = small.new_run(CONFIG, small.cluster("in_process"), tmp_path / "run")

    def refuse(*_: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("ray_l4.monitor.event_file.RecordWriter.write", refuse)
    with pytest.raises(RunDirectoryError, match=r"tensorboard/events\S+: cannot be written \(Permission denied\)"):
        small.start(setup, small.cluster("in_process"), run)


@pytest.mark.slow
def test_slow_storage_changes_nothing(
    undisturbed: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def slow(opened: int) -> None:
        time.sleep(0.02)
        fsync(opened)

    monkeypatch.setattr(os, "fsync", slow)
    run, _ = small.complete_run(CONFIG, small.cluster("in_process"), tmp_path / "run")
    small.assert_equal(run, undisturbed)
    assert figures(run) == figures(undisturbed)
