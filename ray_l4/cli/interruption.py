"""Ctrl-C, SIGTERM, SLURM's SIGUSR1 and a closed terminal: the command ends with exit code 130, whatever it does.

The first signal raises KeyboardInterrupt in the main thread, so that a run is stopped in order; the process then ends
without the interpreter's own clean-up, which aborts if threads of a library are still in native code. A second signal
ends the process at once, as does the first while a module is being imported: nothing has been started by then, and
an exception may be lost inside an import. The last line says so. Until Python has come to this module, a tenth of a
second after the start, a signal does what it does to any Python program.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from ray_l4.config.supervised import SUPERVISED

EXIT_CODE = 130
"""Exit code of a command that was stopped, as shells report Ctrl-C."""

_ORDERLY_TIMEOUT = 120.0
"""Seconds after the first signal at which the process ends in any case."""

_IMPORTER = "<frozen importlib._bootstrap>"

_TWICE = 1.0
"""Seconds within which a second signal to a supervised command is the first one again: schedulers send a signal to all
processes, and the supervisor passes its own on."""

_received = threading.Event()
_received_at = 0.0


def install() -> None:
    """Handle the signals from now on. A thread other than the main one cannot, and leaves them as they are."""
    if threading.current_thread() is threading.main_thread():
        for number in handled():
            signal.signal(number, _on_signal)


def handled() -> list[signal.Signals]:
    """Return the signals that stop a command; a closed terminal is none for one that was started with nohup."""
    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1]
    return numbers if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [*numbers, signal.SIGHUP]


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
    global _received_at
    if _received.is_set() and SUPERVISED in os.environ and time.monotonic() - _received_at < _TWICE:
        return
    if _received.is_set() or _is_importing(frame):
        _exit()
    _received.set()
    _received_at = time.monotonic()
    limit = threading.Timer(_ORDERLY_TIMEOUT, _exit)
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
    _exit()


def _exit() -> None:
    """Say that the command was stopped, without Python's streams, which may be in use, and end the process."""
    with suppress(OSError):
        os.write(2, b"stopped\n")
    os._exit(EXIT_CODE)
