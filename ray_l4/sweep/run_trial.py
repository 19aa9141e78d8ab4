"""One trial, in a process of its own somewhere on the cluster: a run, or what is left of one."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import TextIO

from rich.console import Console

from ray_l4.cluster.placement import bundles
from ray_l4.config.cluster import ClusterConfig
from ray_l4.errors import ClusterError, RunDirectoryError
from ray_l4.methods import graph_of
from ray_l4.run import execute
from ray_l4.store.mirror import MIRROR_NAME_KEY
from ray_l4.store.run_directory import RunDirectory
from ray_l4.sweep.folder import SweepFolder
from ray_l4.sweep.trials import Trial

_LOCK_PATIENCE = 120.0
"""Seconds for the process of a sweep that was killed to let go of its run; Ray notices such a death only slowly."""

_WIDTH = 160

_TAIL = 4096
"""Bytes at the end of a log: more than its last line has."""


def needs(trial: Trial, cluster: ClusterConfig) -> list[dict[str, float]]:
    """Bundles that a trial reserves: as a run of its own would, or one for the single process of a run without Ray."""
    students = cluster.students
    if cluster.exchange.transport != "in_process":
        return bundles(graph_of(trial.experiment).size, cluster)
    amounts = {"CPU": float(students.threads or students.cpus), "GPU": students.gpus}
    return [{name: amount for name, amount in amounts.items() if amount} | students.resources]


def run_trial(trial: Trial, folder: SweepFolder, cluster: ClusterConfig, command: str) -> None:
    """Learn the trial's experiment, or go on with it, into its run directory; what it says goes to its log.

    Raises ClusterError if this node does not see the sweep's folder, and whatever ends the run.
    """
    if not folder.exists:
        raise ClusterError(
            f"{folder.path}: not seen from this node. Trials run anywhere on the cluster: choose an --out on a file "
            "system that all nodes share, or a profile with one node."
        )
    log_path = folder.log(trial)
    log_path.parent.mkdir(exist_ok=True)
    with log_path.open("a", buffering=1, encoding="utf-8") as log:
        handler = _log_to(log)
        try:
            _run(trial, folder, cluster, command, Console(file=log, width=_WIDTH))
        except Exception:
            logging.getLogger(__name__).exception("the run failed")
            raise
        finally:
            logging.getLogger().removeHandler(handler)


def _run(trial: Trial, folder: SweepFolder, cluster: ClusterConfig, command: str, console: Console) -> None:
    path = folder.run(trial)
    if (path / "config.yaml").is_file():
        run = RunDirectory.open(path)
        _await_lock(run)
        execute.resume(run, cluster, console)
    else:
        folder.clear(trial)
        name = f"{folder.path.resolve().name}/{trial.folder}"
        execute.run(trial.experiment, cluster, path, command, console, folder.provenance() | {MIRROR_NAME_KEY: name})


def _await_lock(run: RunDirectory) -> None:
    """Wait for the lock, which nobody but the process of an earlier call of this sweep can hold."""
    deadline = time.monotonic() + _LOCK_PATIENCE
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
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    logging.getLogger().addHandler(handler)
    return handler


def last_line(log: Path) -> str:
    """The last thing a run said, or nothing; read from the end of its log, however long that is."""
    try:
        with log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - _TAIL, 0))
            lines = file.read(_TAIL).decode("utf-8", errors="replace").split("\n")
    except FileNotFoundError:
        return ""
    return next((line for line in reversed(lines) if line.strip()), "")
