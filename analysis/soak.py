"""A soak: evaluators take thousands of small scores beside training, and nothing is lost, doubled or leaked.

::

    python -m analysis.soak RUN_DIR --scores 3000 --evaluators 8 --minutes 30

RUN_DIR is a new folder for the run. Every few seconds the memory of all its processes and what the object store holds
are noted. In the end: how many scores were due, are on disk and were taken (by the coordinator's log), and how memory
grew with the number of scores (least squares, after the first fifth). Exit status 1 if a score is missing or double.
RUN_DIR/soak.json holds the same as data, with all samples.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import ray
from ray._private import internal_api

from analysis.command import exit_status
from analysis.slope import Slope, slope
from ray_l4.config.cluster import ClusterConfig
from ray_l4.config.experiment import ExperimentConfig
from ray_l4.errors import PeerError
from ray_l4.report.markdown import table
from ray_l4.run.session import Session, start
from ray_l4.setup.facts import facts_as_json
from ray_l4.setup.setup import prepare
from ray_l4.store.atomic import write_folder, write_json
from ray_l4.store.run_directory import RunDirectory

TASKS = ("mini.rest", "mini.woz", "mini.sql")
STUDENTS = 2
SAMPLE_SECONDS = 2.0
WARM_UP = 0.2
"""Share of the scores before which growth is that of starting: libraries, caches, first allocations."""
MB = 1e6

_TAKEN = re.compile(r"student (\d+) after (.+), epoch (\d+): (\S+) \S+ [\d.]+$")
_KINDS = {"ray::Coordinator": "coordinator", "ray::Student": "student", "ray::Evaluator": "evaluator"}


@dataclass(frozen=True)
class Sample:
    """Memory at one moment, in bytes."""

    seconds: float
    scores: int
    """Scores on disk."""
    memory: dict[str, float]
    """Mean resident memory of the processes of a kind, all of it and without shared pages; the object store's use."""


@dataclass(frozen=True)
class Count:
    """Scores that were due, are on disk, and were written more than once."""

    due: int
    on_disk: int
    taken: int
    double: list[str]

    @property
    def is_right(self) -> bool:
        """Whether every score is there once."""
        return self.due == self.on_disk == self.taken and not self.double


def growth(samples: Sequence[Sample]) -> dict[str, Slope]:
    """Return the growth of each figure in MB per 1000 scores."""
    first = WARM_UP * max((own.scores for own in samples), default=0)
    late = [own for own in samples if own.scores >= first]
    names = sorted(set().union(*(own.memory for own in late)))
    found = {}
    for name in names:
        have = [own for own in late if name in own.memory]
        found[name] = slope([own.scores / 1000 for own in have], [own.memory[name] / MB for own in have])
    return found


def count(directory: RunDirectory, due: int) -> Count:
    """Count the scores of a run that has ended, on disk and in the coordinator's log, which has a line for each."""
    lines = (directory.path / "logs" / "coordinator.log").read_text(encoding="utf-8").splitlines()
    taken = Counter(match.groups() for line in lines if (match := _TAKEN.search(line)))
    double = [" ".join(cell) for cell, times in taken.items() if times > 1]
    return Count(due, len(directory.scores()), taken.total(), double)


def experiment(scores: int) -> ExperimentConfig:
    """Return a run that takes at least so many scores: tiny models and test sets, scored after every epoch."""
    return ExperimentConfig.model_validate({
        "name": "soak",
        "stream": [{"name": task, "train": 16, "test": 4} for task in TASKS],
        "model": {"from_scratch": {"layers": 1, "width": 32, "heads": 2, "positions": 96, "vocabulary": 400}},
        "training": {"epochs": math.ceil(scores / (len(TASKS) ** 2 * STUDENTS)), "batch_size": 8},
        "optim": {"variant": "torch", "lr": 1e-3},
        "replay": {"ratio": 0.25, "chunk": 4, "max_length": 40},
        "evaluation": {"when": "epoch", "chunk": 4, "max_new_tokens": 4},
    })  # fmt: skip


def profile(evaluators: int) -> ClusterConfig:
    """Return a profile for any machine: no CPU is reserved."""
    return ClusterConfig.model_validate({
        "name": "soak",
        "ray": {"num_cpus": 4, "object_store_memory": 500_000_000},
        "students": {"cpus": 0.5, "threads": 1},
        "evaluators": {"count": evaluators, "threads": 1},
        "exchange": {"transport": "object_store"},
    })  # fmt: skip


def sample(directory: RunDirectory, since: float) -> Sample:
    """Note the memory of the processes of this process's Ray, and of its object store."""
    sizes: dict[str, list[float]] = {}
    session = ray._private.worker.global_worker.node.get_session_dir_path()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            title = (entry / "cmdline").read_bytes().split(b"\0")[0].decode()
            kind = next((kind for start, kind in _KINDS.items() if title.startswith(start)), None)
            if kind is None or session not in _parent_command(entry):
                continue
            status = (entry / "status").read_text()
        except OSError:  # it has ended meanwhile
            continue
        for field in ("VmRSS", "RssAnon"):
            found = re.search(rf"^{field}:\s+(\d+)", status, re.MULTILINE)
            if found:
                sizes.setdefault(f"{kind} {field}", []).append(int(found[1]) * 1024.0)
    memory = {name: sum(own) / len(own) for name, own in sizes.items()}
    (node,) = ray.nodes()
    stats = internal_api.node_stats(node["NodeManagerAddress"], node["NodeManagerPort"], include_memory_info=False)
    memory["object store"] = float(stats.store_stats.object_store_bytes_used)
    scores = directory.path / "scores"
    return Sample(time.monotonic() - since, len(list(scores.iterdir())) if scores.is_dir() else 0, memory)


def _parent_command(process: Path) -> str:
    parent = (process / "stat").read_text().rpartition(")")[2].split()[1]
    return (Path("/proc") / parent / "cmdline").read_text()


def _watch(session: Session, directory: RunDirectory, minutes: float) -> list[Sample]:
    since, samples = time.monotonic(), []
    try:
        while not session.wait(SAMPLE_SECONDS):
            samples.append(sample(directory, since))
            if samples[-1].seconds > 60 * minutes:
                raise PeerError(f"{directory.path}: {samples[-1].scores} scores in {minutes:g} minutes (--minutes)")
        session.result()
    finally:
        session.close()
    return samples


def soak(folder: Path, scores: int, evaluators: int, minutes: float) -> Count:
    """Run, and write ``soak.json``. Raises PeerError if the run takes longer than ``minutes``."""
    config, cluster = experiment(scores), profile(evaluators)
    setup = prepare(config)
    manifest = {"command": "soak", "versions": {}, "platform": "", **facts_as_json(setup.facts)}
    directory = RunDirectory.create(folder, setup.experiment, cluster, manifest)
    write_folder(directory.path / "tokenizer", setup.tokenizer.save)
    samples = _watch(start(setup, cluster, directory), directory, minutes)
    counted = count(directory, len(TASKS) ** 2 * STUDENTS * config.training.epochs)
    slopes = growth(samples)
    record = {"count": asdict(counted), "slopes": slopes, "samples": [asdict(own) for own in samples]}
    write_json(folder / "soak.json", record | {"cpus": os.cpu_count(), "evaluators": evaluators})
    last = {name: size for own in samples for name, size in own.memory.items()}
    rows = [(name, f"{last[name] / MB:.1f}", f"{own.value:+.3f}", f"{own.error:.3f}")
            for name, own in slopes.items()]  # fmt: skip
    print(f"due {counted.due}, on disk {counted.on_disk}, taken {counted.taken}, double {len(counted.double)}; "
          f"{samples[-1].seconds:.0f} s\n")  # fmt: skip
    print(table(("process", "MB at the end", "MB per 1000 scores", "standard error"), rows))
    return counted


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    parser.add_argument("--scores", type=int, default=3000)
    parser.add_argument("--evaluators", type=int, default=8)
    parser.add_argument("--minutes", type=float, default=30)
    given = parser.parse_args(arguments)
    counts: list[Count] = []
    status = exit_status(lambda: counts.append(soak(given.run_dir, given.scores, given.evaluators, given.minutes)))
    return status or int(not counts[0].is_right)


if __name__ == "__main__":
    sys.exit(main())
