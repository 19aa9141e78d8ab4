"""Event files for TensorBoard, written without PyTorch, whose ``SummaryWriter`` takes seconds to import."""

from __future__ import annotations

import itertools
import os
import platform
import time
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog, SourceMetadata
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from ray_l4.store.unwritable import naming_unwritable

_FLUSH_SECONDS = 10.0
"""Seconds after which events are visible to readers of the file."""

_numbers = itertools.count()


class EventFile:
    """A new event file in ``folder``, which replaces the steps of earlier ones from ``purge_step`` on.

    Written by the calling thread, unlike TensorBoard's own writer: storage that refuses is then an error of the call
    that meets it, and no thread is left at the end of the process. Raises UnwritableError if it does.
    """

    def __init__(self, folder: Path, purge_step: int) -> None:
        name = f"events.out.tfevents.{int(time.time()):010d}.{platform.node()}.{os.getpid()}.{next(_numbers)}"
        self._path = folder / name
        with naming_unwritable(self._path):
            folder.mkdir(parents=True, exist_ok=True)
            self._writer = RecordWriter(self._path.open("wb"))
        self._next_flush = 0.0
        source = SourceMetadata(writer="tensorboard.summary.writer.event_file_writer")
        self._add(Event(file_version="brain.Event:2", source_metadata=source), 0)
        # As in torch.utils.tensorboard: a session that starts at a step purges what was written from that step on.
        self._add(Event(file_version="brain.Event:2"), purge_step)
        self._add(Event(session_log=SessionLog(status=SessionLog.START)), purge_step)

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        """Add a point to the curve ``tag``."""
        self._add(Event(summary=Summary(value=[Summary.Value(tag=tag, simple_value=float(value))])), step)

    def close(self) -> None:
        """Flush and close the file."""
        with naming_unwritable(self._path):
            self._writer.close()

    def _add(self, event: Event, step: int) -> None:
        event.wall_time = time.time()
        event.step = step
        with naming_unwritable(self._path):
            self._writer.write(event.SerializeToString())
            if time.monotonic() >= self._next_flush:
                self._writer.flush()
                self._next_flush = time.monotonic() + _FLUSH_SECONDS
