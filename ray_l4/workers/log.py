"""Log lines of a worker, kept until the coordinator, which alone writes the run directory, fetches them."""

from __future__ import annotations

import logging
import os
from collections import deque
from dataclasses import dataclass

LOGGERS = ("ray_l4.coordinator", "ray_l4.exchange", "ray_l4.learner")
"""Each of them has a file of its own in ``RUN_DIR/logs/``."""

DEBUG_VARIABLE = "RAY_L4_DEBUG"
"""If this environment variable is set to anything but 0, every step is logged, not only every stage."""

_MOST_LINES = 10_000
"""Lines that a worker keeps; older ones are dropped."""


@dataclass(frozen=True)
class LogLine:
    """A formatted line and the logger that it came through."""

    logger: str
    text: str


class LineFormatter(logging.Formatter):
    """Time, level and process before the message; a traceback, if there is one, after it."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s [%(process)d] %(message)s")


def log_level() -> int:
    """Return the level from which lines are kept."""
    return logging.DEBUG if os.environ.get(DEBUG_VARIABLE, "0") not in ("", "0") else logging.INFO


class LogBuffer(logging.Handler):
    """Keeps the newest lines of the project's loggers in this process."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(LineFormatter())
        self._lines: deque[LogLine] = deque(maxlen=_MOST_LINES)

    @classmethod
    def attached(cls) -> LogBuffer:
        """Return a buffer that gets all lines that are logged in this process from now on."""
        buffer = cls()
        for name in LOGGERS:
            logger = logging.getLogger(name)
            logger.setLevel(log_level())
            logger.addHandler(buffer)
        return buffer

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(LogLine(record.name, self.format(record)))

    def take(self) -> list[LogLine]:
        """Return the lines since the last call."""
        lines = []
        while self._lines:
            lines.append(self._lines.popleft())
        return lines
