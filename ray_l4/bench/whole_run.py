"""``ray-l4 bench run``: a whole run on Ray against the textbook's, one after the other."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from ray_l4.bench.ledger import provenance
from ray_l4.config.loading import load_experiment
from ray_l4.errors import ConfigError, PeerError
from ray_l4.store.run_directory import RunDirectory

_ANSWER = "{"


def measure(experiment: Path, cluster: Path, progress: Callable[[str], None]) -> dict[str, Any]:
    """Run ``experiment`` on ``cluster``, and as the textbook does; returns the figures of both.

    Raises ConfigError for an experiment that the textbook has no equivalent of, PeerError if one of the two fails.
    """
    config = load_experiment(experiment)
    if config.method != "l4" or config.model.from_scratch is None:
        raise ConfigError(f"{experiment}: expected the method l4 and a model from scratch, which the textbook has")
    threads = 1
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        command = ["ray_l4.cli", "run", str(experiment), "--cluster", str(cluster), "--run-dir", str(run_dir)]
        progress(f"ray-l4 {shlex.join(command[1:])}")
        started = time.time()
        here = _timed(command)
        found = _of_run(RunDirectory.open(run_dir), started)
    progress("the textbook's run, in one process")
    timed = _timed(["ray_l4.bench.textbook_run", str(experiment), str(threads)])
    textbook = timed | json.loads(timed["output"])
    steps = found["steps"]
    return {
        "bench": "run",
        "model": experiment.stem,
        "batch": config.training.batch_size,
        "threads": threads,
        "cpu_ms_step": 1e3 * here["cpu_seconds"] / steps,
        "textbook_cpu_ms_step": 1e3 * textbook["cpu_seconds"] / textbook["steps"],
        "speedup_over_textbook": textbook["cpu_seconds"] / textbook["steps"] / (here["cpu_seconds"] / steps),
        "wall_speedup_over_textbook": textbook["wall_seconds"] / textbook["steps"] / (here["wall_seconds"] / steps),
        "wall_seconds": here["wall_seconds"],
        "textbook_wall_seconds": textbook["wall_seconds"],
        "textbook_peak_rss_bytes": textbook["peak_rss_bytes"],
        "textbook_steps": textbook["steps"],
        **found,
        **provenance(),
    }


def _timed(module: Sequence[str]) -> dict[str, Any]:
    """Run a module of this project in a process of its own; returns its output, and the seconds that it took.

    CPU time is that of the whole machine, since Ray's processes are nobody's children: nothing else may run beside it.
    """
    before, began = _machine_seconds(), time.perf_counter()
    done = subprocess.run([sys.executable, "-m", *module], capture_output=True, text=True, check=False)
    if done.returncode:
        raise PeerError(f"{shlex.join(module)} ended with {done.returncode}: {done.stderr.strip()[-500:]}")
    lines = [line for line in done.stdout.splitlines() if line.startswith(_ANSWER)]
    return {
        "wall_seconds": time.perf_counter() - began,
        "cpu_seconds": _machine_seconds() - before,
        "output": lines[-1] if lines else "",
    }


def _machine_seconds() -> float:
    """Return the CPU time that all processes of this machine have used so far (Linux)."""
    user, nice, system = Path("/proc/stat").read_text(encoding="utf-8").split()[1:4]
    return (int(user) + int(nice) + int(system)) / os.sysconf("SC_CLK_TCK")


def _of_run(run: RunDirectory, started: float) -> dict[str, Any]:
    """Return what the run directory says: steps, seconds until the first and after the last one, spans, memory.

    ``started``: when the command was started, in seconds since the epoch, as the timeline has them.
    """
    spans = pq.read_table(run.path / "timeline.parquet").to_pylist()
    training = [own for own in spans if own["kind"] == "training"]
    first, last = min(own["start"] for own in training), max(own["end"] for own in training)
    end = max(own["end"] for own in spans)
    return {
        "steps": len({(row["stage"], row["step"]) for row in run.step_figures()}),
        "seconds_to_first_step": first - started,
        "training_seconds": last - first,
        "scoring_tail_seconds": end - last,
        "spans": _seconds_by_kind(spans),
        "peak_rss_bytes": max(run.summary()["peak_memory_bytes"].values()),
    }


def _seconds_by_kind(spans: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the seconds that all processes together spent on each kind of work."""
    total: Counter[str] = Counter()
    for own in spans:
        total[own["kind"]] += own["end"] - own["start"]
    return {kind: round(seconds, 2) for kind, seconds in total.items()}
