"""Log lines of a worker, which are kept until the coordinator fetches them and writes them to the run directory."""

from __future__ import annotations

import logging
import os
from collections import deque
from dataclasses import dataclass

from ray_l4.config.redaction import redacted

LOGGERS = ("ray_l4.coordinator", "ray_l4.exchange", "ray_l4.learner")
"""Each logger has its own file in ``RUN_DIR/logs/``."""

DEBUG_VARIABLE = "RAY_L4_DEBUG"
"""If this environment variable is set to anything but 0, every step is logged, not only every stage."""

_MOST_LINES = 10_000
"""Number of lines that a worker keeps; older ones are dropped."""


@dataclass(frozen=True)
class LogLine:
    """A formatted line and the name of its logger."""

    logger: str
    text: str


class SecretsHidden(logging.Formatter):
    """Formats a message, and the traceback, if any, after it, without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        return redacted(super().format(record))


class LineFormatter(SecretsHidden):
    """Puts time, level and process id before a message."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s [%(process)d] %(message)s")


def log_level() -> int:
    """Return the lowest level of the lines that are kept."""
    return logging.DEBUG if os.environ.get(DEBUG_VARIABLE, "0") not in ("", "0") else logging.INFO


class LogBuffer(logging.Handler):
    """Keeps the newest lines of the project's loggers in this process."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(LineFormatter())
        self._lines: deque[LogLine] = deque(maxlen=_MOST_LINES)

    @classmethod
    def attached(cls) -> LogBuffer:
        """Return a new buffer, attached to the project's loggers in this process."""
        buffer = cls()
        for name in LOGGERS:
            logger = logging.getLogger(name)
            logger.setLevel(log_level())
            logger.addHandler(buffer)
        return buffer

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(LogLine(record.name, self.format(record)))

    def take(self) -> list[LogLine]:
        """Return the lines logged since the last call."""
        lines = []
        while self._lines:
            lines.append(self._lines.popleft())
        return lines
