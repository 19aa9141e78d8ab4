"""The small runs that faults are injected into, and their undisturbed twins."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from analysis.faults.processes import children_of, kind_of, read_title

_LIMIT = 300.0
_TIMEOUTS = {"start": 45, "step": 15, "work": 30, "control": 5}
"""Short, so that what hangs is noticed soon."""

_EXPERIMENT: dict[str, Any] = {
    "name": "faults",
    "stream": [
        {"name": "mini.rest", "train": 96, "test": 8},
        {"name": "mini.woz", "train": 80, "test": 8},
        {"name": "mini.sql", "train": 80, "test": 8},
    ],
    "model": {"from_scratch": {"layers": 1, "width": 32, "heads": 2, "positions": 96, "vocabulary": 400}},
    "training": {"epochs": 2, "batch_size": 4},
    "optim": {"variant": "torch", "lr": 1e-2, "eps": 1e-8, "warmup": 0.1},
    "replay": {"ratio": 0.4, "chunk": 4, "max_length": 64},
    "evaluation": {"chunk": 2, "max_new_tokens": 12, "when": "epoch"},
    "checkpoint": {"every_steps": 10},
}
"""Three stages of some fifty steps, with a state every ten: a fault falls into the middle of something."""

SUBJECTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "l4": ({"method": "l4"}, {}),
    "validation": ({"method": "l4", "evaluation": {**_EXPERIMENT["evaluation"], "validation": 0.1}}, {}),
    "lamol": ({"method": "lamol"}, {}),
    "collective": ({"method": "l4"}, {"exchange": {"transport": "collective"}}),
}
"""Changes to the experiment and to the profile, by name."""


def stages_of(subject: str) -> int:
    """Return the number of stages of a subject."""
    return len((_EXPERIMENT | SUBJECTS[subject][0])["stream"])


def write_files(subject: str, folder: Path, on_nodes: str | None = None) -> tuple[Path, Path]:
    """Write the experiment and the profile of a subject; ``on_nodes`` is the address of a cluster to join."""
    experiment, profile = SUBJECTS[subject]
    cluster: dict[str, Any] = {
        "ray": {"num_cpus": 4, "object_store_memory": 200_000_000},
        "students": {"cpus": 0.5},
        "evaluators": {"cpus": 0.5},
        "exchange": {"transport": "object_store"},
        "timeouts": _TIMEOUTS,
    } | profile
    if on_nodes is not None:
        cluster |= {"ray": {"address": on_nodes}, "students": {"cpus": 1}}
        cluster["evaluators"] = {"cpus": 0.5, "resources": {"scoring": 0.5}}
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / "experiment.yaml", folder / "cluster.yaml"
    for path, content in zip(paths, (_EXPERIMENT | experiment, cluster), strict=True):
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return paths


class References:
    """The undisturbed runs, in one process each, made when they are first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def of(self, subject: str) -> Path:
        """Return the run directory of the undisturbed run. Raises CalledProcessError if it fails."""
        run = self.folder / subject / "run"
        if not (run / "summary.json").is_file():
            experiment, _ = write_files(subject, run.parent)
            profile = run.parent / "in_process.yaml"
            profile.write_text(yaml.safe_dump({"exchange": {"transport": "in_process"}}), encoding="utf-8")
            arguments = ["run", experiment, "--cluster", profile, "--run-dir", run]
            words = [sys.executable, "-m", "ray_l4.cli", *map(str, arguments)]
            subprocess.run(words, check=True, capture_output=True, timeout=_LIMIT, env=environment({}))
        return run


def environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a command: every step is logged."""
    return {**os.environ, **_ENVIRONMENT, **extra}


_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "COLUMNS": "300",
    "RAY_L4_DEBUG": "1",
}

_FAST_CHECKS = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 2000,
    "health_check_failure_threshold": 2,
}
"""A pretended node that does not answer is given up after some five seconds: Ray's own patience is a minute."""


class Nodes:
    """A cluster of pretended nodes: a head that scores, and three that hold a student each, one of them spare."""

    def __init__(self, cluster: Any) -> None:
        self._cluster = cluster
        self.address: str = cluster.address
        self._nodes = [self._new() for _ in range(3)]

    def _new(self) -> Any:
        return self._cluster.add_node(num_cpus=1, include_dashboard=False)

    def with_raylet(self, raylets: list[int]) -> list[int]:
        """Return those of the raylets that belong to a removable node with a student on it."""
        own = {info.process.pid for node in self._nodes for info in node.all_processes["raylet"]}
        return [pid for pid in raylets if pid in own and any(map(_is_student, children_of(pid)))]

    def remove(self, raylet: int) -> None:
        """Remove the node of a raylet at once, with everything on it; another one joins."""
        node = next(n for n in self._nodes if any(i.process.pid == raylet for i in n.all_processes["raylet"]))
        self._nodes.remove(node)
        self._cluster.remove_node(node, allow_graceful=False)
        self._nodes.append(self._new())


def _is_student(pid: int) -> bool:
    return kind_of(read_title(pid)) == "student"


@contextmanager
def several_nodes(mark: Mapping[str, str]) -> Iterator[Nodes]:
    """A cluster for one run. Its processes carry ``mark`` in their environment, as those of a local one do."""
    from ray.cluster_utils import Cluster

    own = {**_ENVIRONMENT, **mark}
    before = {name: os.environ.get(name) for name in own}
    os.environ.update(own)
    cluster = Cluster()
    try:
        cluster.add_node(num_cpus=1, include_dashboard=False, resources={"scoring": 1}, _system_config=_FAST_CHECKS)
        yield Nodes(cluster)
    finally:
        cluster.shutdown()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
