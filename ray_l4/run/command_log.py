"""What a command printed about a run, kept in ``logs/command.log`` of the run directory."""

from __future__ import annotations

import logging
import threading
import time
import traceback
import warnings
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TextIO

from rich.console import Console

from ray_l4.config.redaction import redacted
from ray_l4.errors import RayL4Error


class CommandLog:
    """Prints lines for the user and keeps them, with warnings of libraries and the error that ends the command.

    A context manager: lines are kept from its beginning, and written once ``keep_in`` has named the file.
    """

    def __init__(self, console: Console, title: str) -> None:
        """``title``: what the command does, for the first line."""
        self.console = console
        self._lines = [f"# {time.strftime('%Y-%m-%d %H:%M:%S')} {redacted(title)}"]
        self._path: Path | None = None
        self._lock = threading.Lock()  # warnings come from any thread
        self._handler = _Noting(self)
        self._show_warning = warnings.showwarning

    def say(self, text: str) -> None:
        """Print ``text`` and keep it."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)
        self.note(text)

    def note(self, text: str) -> None:
        """Keep ``text`` without printing it."""
        with self._lock:
            self._lines.append(redacted(text))
        self._write()

    def keep_in(self, path: Path) -> None:
        """Add all lines so far to the file at ``path``, and later ones as they come."""
        self._path = path
        self._write()

    def __enter__(self) -> CommandLog:
        logging.getLogger().addHandler(self._handler)
        self._show_warning = warnings.showwarning
        warnings.showwarning = self._warn
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        warnings.showwarning = self._show_warning
        logging.getLogger().removeHandler(self._handler)
        if isinstance(error, RayL4Error | OSError):
            self.note(f"error: {error}")
        elif isinstance(error, Exception):
            self.note("".join(traceback.format_exception(error)))
        elif error is not None:
            self.note("stopped")

    def _warn(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        self._show_warning(message, category, filename, lineno, file, line)
        self.note(f"{category.__name__}: {message}")

    def _write(self) -> None:
        if self._path is None:
            return
        # A full disk is reported by whoever writes what the run needs.
        with self._lock, suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.writelines(f"{line}\n" for line in self._lines)
            self._lines.clear()


class _Noting(logging.Handler):
    """Keeps the warnings that are logged, and shows them as if there were no handler."""

    def __init__(self, log: CommandLog) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        self._log.note(f"{record.levelname.lower()}: {record.getMessage()}")
        alone = logging.getLogger().handlers == [self]
        if alone and logging.lastResort is not None:
            logging.lastResort.handle(record)
