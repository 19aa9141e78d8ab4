"""Ctrl-C and SIGTERM: the command ends with exit code 130, whatever it is doing.

The first signal raises KeyboardInterrupt in the main thread, so that a run is stopped in order; the process then ends
without the interpreter's own clean-up, which aborts if threads of a library are still in native code. A second signal
ends the process at once, as does the first while a module is being imported: nothing has been started by then, and
an exception may be lost inside an import.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

EXIT_CODE = 130
"""Exit code of a command that was stopped, as shells report Ctrl-C."""

_ORDERLY_TIMEOUT = 120.0
"""Seconds after the first signal at which the process ends in any case."""

_IMPORTER = "<frozen importlib._bootstrap>"

_received = threading.Event()


def install() -> None:
    """Handle SIGINT and SIGTERM from now on. A thread other than the main one cannot, and leaves them as they are."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _on_signal)


@contextmanager
def heeded() -> Iterator[None]:
    """Handle the signals; if one arrived, end the process at the end of this context, whatever ended it."""
    install()
    try:
        yield
    finally:
        if _received.is_set():
            _end()


def arrived() -> bool:
    """Return whether a signal has arrived."""
    return _received.is_set()


def _on_signal(number: int, frame: FrameType | None) -> None:
    if _received.is_set() or _is_importing(frame):
        os._exit(EXIT_CODE)
    _received.set()
    limit = threading.Timer(_ORDERLY_TIMEOUT, os._exit, [EXIT_CODE])
    limit.daemon = True
    limit.start()
    raise KeyboardInterrupt


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None and frame.f_code.co_filename != _IMPORTER:
        frame = frame.f_back
    return frame is not None


def _end() -> None:
    """End the process: its own Ray cluster first, then without waiting for any thread."""
    ray = sys.modules.get("ray")
    with suppress(Exception):  # it may be half imported, or half started; its processes end with this one then
        if ray is not None:
            ray.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # nobody may be reading any more
            stream.flush()
    os._exit(EXIT_CODE)
