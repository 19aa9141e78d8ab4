"""One trial in its own process on the cluster: a new run, or a resumed one."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import TextIO

from rich.console import Console

from ray_l4.config.cluster import ClusterConfig
from ray_l4.errors import ClusterError, RunDirectoryError
from ray_l4.run import execute
from ray_l4.store.mirror import MIRROR_NAME_KEY
from ray_l4.store.run_directory import RunDirectory
from ray_l4.sweep.directory import SweepDirectory
from ray_l4.sweep.trials import Trial
from ray_l4.workers.log import SecretsHidden

_LOCK_TIMEOUT = 120.0
"""Seconds to wait for a killed sweep's trial to release its run directory; Ray notices such a death slowly."""

_WIDTH = 160
"""Width of a log, in characters."""

_TAIL = 4096
"""Bytes to read from the end of a log: more than its last line has."""


def run_trial(trial: Trial, directory: SweepDirectory, cluster: ClusterConfig, command: str) -> None:
    """Run the trial's experiment, or resume it, in its run directory; write its output to its log.

    Raises ClusterError if the sweep directory is not visible from this node, and any error that ends the run.
    """
    if not directory.exists:
        raise ClusterError(
            f"{directory.path}: not visible from this node. Trials run anywhere on the cluster: choose an --out on a "
            "file system that all nodes share, or a profile with one node."
        )
    log_path = directory.log_path(trial)
    log_path.parent.mkdir(exist_ok=True)
    with log_path.open("a", buffering=1, encoding="utf-8") as log:
        handler = _log_to(log)
        try:
            _run(trial, directory, cluster, command, Console(file=log, width=_WIDTH))
        except Exception:
            logging.getLogger(__name__).exception("the run failed")
            raise
        finally:
            logging.getLogger().removeHandler(handler)


def _run(trial: Trial, directory: SweepDirectory, cluster: ClusterConfig, command: str, console: Console) -> None:
    path = directory.run_path(trial)
    if (path / "config.yaml").is_file():
        run = RunDirectory.open(path)
        _await_lock(run)
        execute.resume(run, cluster, console)
    else:
        directory.discard(trial)
        name = f"{directory.path.resolve().name}/{trial.name}"
        execute.run(trial.experiment, cluster, path, command, console, directory.provenance() | {MIRROR_NAME_KEY: name})


def _await_lock(run: RunDirectory) -> None:
    """Wait until the run directory is unlocked; only a trial of an earlier call of this sweep can hold the lock.

    Raises RunDirectoryError if it is still locked after ``_LOCK_TIMEOUT``.
    """
    deadline = time.monotonic() + _LOCK_TIMEOUT
    while True:
        try:
            with run.lock():
                return
        except RunDirectoryError:
            if time.monotonic() > deadline:
                raise
            time.sleep(1)


def _log_to(file: TextIO) -> logging.Handler:
    handler = logging.StreamHandler(file)
    handler.setFormatter(SecretsHidden("%(levelname)s %(name)s: %(message)s"))
    logging.getLogger().addHandler(handler)
    return handler


def last_line(log: Path) -> str:
    """Return the last non-blank line of a log, or an empty text; reads only the end of the file."""
    try:
        with log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - _TAIL, 0))
            lines = file.read(_TAIL).decode("utf-8", errors="replace").split("\n")
    except FileNotFoundError:
        return ""
    return next((line for line in reversed(lines) if line.strip()), "")
