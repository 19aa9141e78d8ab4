"""Errors as the user sees them: one message and an exit code, and the full traceback with ``--debug``."""

from __future__ import annotations

import errno
import os
import re
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from ray_l4.config.redaction import redacted
from ray_l4.config.text import shown
from ray_l4.errors import ConfigError, RayL4Error, RunDirectoryError
from ray_l4.store.full_disk import full_disk_message, is_full_disk
from ray_l4.workers.log import DEBUG_VARIABLE

_MOST_LINES = 50
"""Lines of a message that are shown; a file may have a mistake in each of its lines."""
_NAMES = (errno.ENAMETOOLONG,)
"""Errors of a path that no file can have."""


def set_debug(wanted: bool) -> None:
    """Turn debugging on or off for this process and for those that it starts, which inherit the variable."""
    if wanted:
        os.environ[DEBUG_VARIABLE] = "1"
    else:
        os.environ.pop(DEBUG_VARIABLE, None)


def explain(error: Exception) -> tuple[str, int] | None:
    """Return the message and exit code of an error that the user can correct; None for a defect of the program."""
    if isinstance(error, RayL4Error):
        return str(error), error.exit_code
    if isinstance(error, OSError):
        if error.errno in _NAMES:
            return f"{shown(str(error.filename))}: {error.strerror}; give another path", ConfigError.exit_code
        run = _run_around(error.filename)
        if run is not None and not is_full_disk(error):
            why = f"{error.filename}: {error.strerror}. It is a part of the run {run}, which is damaged: restore it"
            return why, RunDirectoryError.exit_code
        full = is_full_disk(error)
        return full_disk_message(error.filename, error) if full else str(error), RayL4Error.exit_code
    if isinstance(error, ValueError):
        from pydantic import ValidationError

        if isinstance(error, ValidationError):  # the value of an option is out of bounds
            return "; ".join(map(_problem, error.errors())), ConfigError.exit_code
    return None


def _run_around(file: object) -> Path | None:
    """Return the run directory that a file of an error is in, if it is in one."""
    around = Path(file).absolute().parents if isinstance(file, str) else ()
    return next((folder for folder in around if (folder / "config.yaml").is_file()), None)


def _problem(found: Any) -> str:
    """Return one problem that pydantic found: where, unless it is the whole group, and what."""
    where = ".".join(map(str, found["loc"]))
    what = str(found["ctx"]["error"]) if found["type"] == "value_error" else found["msg"]
    return f"{where}: {what}" if where else what


def print_failure(error: Exception, message: str) -> None:
    """Print ``message`` to stderr; with debugging on, the tracebacks of ``error`` and its causes come first."""
    from rich.console import Console
    from rich.text import Text

    if DEBUG_VARIABLE in os.environ:
        sys.stderr.write(redacted(_tidy("".join(traceback.format_exception(error)))))
    lines = redacted(message).splitlines()
    if len(lines) > _MOST_LINES:
        lines = [*lines[:_MOST_LINES], f"... and {len(lines) - _MOST_LINES:,} more lines"]
    console = Console(stderr=True, highlight=False)
    console.print(Text.assemble(("error:", "bold red"), " ", "\n".join(lines)), soft_wrap=True)


def end_at_once(code: int) -> NoReturn:
    """End the process without the clean-up of libraries, which would wait for a Ray session that does not answer."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # nobody may be reading any more
            stream.flush()
    os._exit(code)


def _tidy(text: str) -> str:
    """Remove colours from a traceback, and underlines that belong to no line of code.

    The text of an error from a Ray worker holds the worker's traceback without Ray's own frames, but with the
    underlines of their code.
    """
    kept: list[str] = []
    for line in re.sub(r"\x1b\[[\d;]*m", "", text).splitlines(keepends=True):
        underlines = line.strip() != "" and not line.strip(" ^~\n")
        if not underlines or (kept[-1].startswith("    ") and kept[-1].strip(" ^~\n")):
            kept.append(line)
    return "".join(kept)
