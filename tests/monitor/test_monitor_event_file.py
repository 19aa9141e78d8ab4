"""Event files hold what PyTorch's ``SummaryWriter`` would write, apart from times."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from torch.utils.tensorboard import SummaryWriter

from ray_l4.errors import RunDirectoryError
from ray_l4.monitor.event_file import EventFile

POINTS = [("loss/student-0", 0.1, 3), ("loss/student-1", float("inf"), 3), ("lr/student-0", 1e-3, 4)]


def events(folder: Path) -> list[Event]:
    (path,) = folder.iterdir()
    found = [Event.FromString(record) for record in RawEventFileLoader(str(path)).Load()]
    for event in found:
        event.wall_time = 0
    return found


def test_events_equal_those_of_pytorch(tmp_path: Path) -> None:
    own, reference = EventFile(tmp_path / "own", 3), SummaryWriter(str(tmp_path / "reference"), purge_step=3)
    for tag, value, step in POINTS:
        own.add_scalar(tag, value, step)
        reference.add_scalar(tag, value, step)
    own.close()
    reference.close()
    assert events(tmp_path / "own") == events(tmp_path / "reference")
    assert len(events(tmp_path / "own")) == 3 + len(POINTS)


def test_a_full_disk_is_an_error_of_the_call_that_meets_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not of a thread, whose traceback would be printed, and not of a later call without the name of the file."""
    real = Path.open
    monkeypatch.setattr(Path, "open", lambda path, mode: real(Path("/dev/full"), mode))
    with pytest.raises(RunDirectoryError, match=rf"{tmp_path}/events\.out\.tfevents\..*: cannot be written, because"):
        EventFile(tmp_path, 0)


def test_no_thread_is_left_that_python_would_have_to_end(tmp_path: Path) -> None:
    before = threading.active_count()
    EventFile(tmp_path, 0)
    assert threading.active_count() == before
