"""The logs of a run: one file in ``RUN_DIR/logs/`` for each of the project's loggers."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ray_l4.store.run_directory import RunDirectory
from ray_l4.store.unwritable import naming_unwritable, unwritable_message
from ray_l4.workers.log import LOGGERS, LineFormatter, LogLine, log_level


class RunLog:
    """Appends lines that workers logged to the log files of the run."""

    def __init__(self, directory: RunDirectory) -> None:
        self._directory = directory

    def add(self, lines: Sequence[LogLine]) -> None:
        """Append each line to the file of its logger."""
        for logger in dict.fromkeys(line.logger for line in lines):
            path = self._directory.log(logger.rpartition(".")[2])
            path.parent.mkdir(exist_ok=True)
            with path.open("a", encoding="utf-8") as file:
                file.writelines(f"{line.text}\n" for line in lines if line.logger == logger)


class _LogFile(logging.FileHandler):
    """A log file that goes without lines that its storage refuses: what the run needs fails by itself then."""

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if error is None or unwritable_message(Path(self.baseFilename), error) is None:
            super().handleError(record)

    def close(self) -> None:
        try:
            super().close()
        except OSError as error:
            if unwritable_message(Path(self.baseFilename), error) is None:
                raise


@contextmanager
def logging_to(directory: RunDirectory) -> Iterator[None]:
    """Within this context, write the lines of this process's loggers to the log files of the run."""
    handlers = []
    for name in LOGGERS:
        path = directory.log(name.rpartition(".")[2])
        with naming_unwritable(path):
            path.parent.mkdir(exist_ok=True)
            handler = _LogFile(path, encoding="utf-8")
        handler.setFormatter(LineFormatter())
        logger = logging.getLogger(name)
        handlers.append((logger, handler, logger.level, logger.propagate))
        logger.setLevel(log_level())
        logger.addHandler(handler)
        logger.propagate = False  # the terminal, or a sweep's log, shows the run's progress in its own form
    try:
        yield
    finally:
        for logger, handler, level, propagates in handlers:
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagates
            handler.close()
