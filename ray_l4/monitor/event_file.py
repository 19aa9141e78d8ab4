"""Event files for TensorBoard, written without PyTorch, whose ``SummaryWriter`` takes seconds to import."""

from __future__ import annotations

import time
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter


class EventFile:
    """A new event file in ``folder``, which replaces the steps of earlier ones from ``purge_step`` on."""

    def __init__(self, folder: Path, purge_step: int) -> None:
        self._writer = EventFileWriter(str(folder))
        # As in torch.utils.tensorboard: a session that starts at a step purges what was written from that step on.
        self._add(Event(file_version="brain.Event:2"), purge_step)
        self._add(Event(session_log=SessionLog(status=SessionLog.START)), purge_step)

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        """Add a point to the curve ``tag``."""
        self._add(Event(summary=Summary(value=[Summary.Value(tag=tag, simple_value=float(value))])), step)

    def close(self) -> None:
        """Flush and close the file."""
        self._writer.close()

    def _add(self, event: Event, step: int) -> None:
        event.wall_time = time.time()
        event.step = step
        self._writer.add_event(event)
