"""A small run, with or without Ray, and what it left behind."""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import ray
from ray.cluster_utils import Cluster

from ray_l4.cluster.connection import connect
from ray_l4.cluster.handles import StudentHandle
from ray_l4.cluster.rpc import PerRank, Rpc
from ray_l4.cluster.spawn import LocalSpawner
from ray_l4.config.cluster import ClusterConfig
from ray_l4.config.experiment import ExperimentConfig
from ray_l4.errors import ModelError, PeerError, PeerLostError, RayL4Error
from ray_l4.methods import METHODS, Topology, complete, isolated
from ray_l4.monitor.progress import Progress
from ray_l4.run.context import RunContext, StoppedError
from ray_l4.run.coordinator import Coordinator, new_context
from ray_l4.run.session import Session, start
from ray_l4.run.step_loop import StepFigures, StepRules, train_steps
from ray_l4.setup.facts import facts_as_json
from ray_l4.setup.setup import Setup, prepare
from ray_l4.store.atomic import write_folder
from ray_l4.store.run_directory import RunDirectory, RunState
from tests.run.worker_fixtures import FENCE

LIMIT = 180.0

SHARED = ClusterConfig.model_validate({"ray": {"num_cpus": 4, "object_store_memory": 200_000_000}})
"""The local cluster that the tests of a session share, whatever the machine has."""

Finished = tuple[RunDirectory, dict[str, Any]]
"""A finished run and its summary."""


def experiment(**changes: Any) -> ExperimentConfig:
    """Two embedded tasks, a tiny model, two epochs: half a minute on Ray, seconds without."""
    sections: dict[str, Any] = {
        "name": "small",
        "stream": [{"name": "mini.woz", "train": 40, "test": 8}, {"name": "mini.sql", "train": 40, "test": 8}],
        "model": {"from_scratch": {"layers": 1, "width": 32, "heads": 2, "positions": 96, "vocabulary": 400}},
        "training": {"epochs": 2, "batch_size": 8},
        "optim": {"variant": "torch", "lr": 2e-3},
        "replay": {"ratio": 0.5, "chunk": 4, "max_length": 40},
        "evaluation": {"chunk": 4, "max_new_tokens": 8},
    }
    return ExperimentConfig.model_validate(sections | changes)


def long_enough(**changes: Any) -> ExperimentConfig:
    """A run with a hundred steps in its first stage, for tests that interfere with it there."""
    sections = {
        "stream": [{"name": "mini.woz", "train": 160, "test": 8}, {"name": "mini.sql", "train": 16, "test": 8}],
        "training": {"epochs": 5, "batch_size": 8},
    }
    return experiment(**sections | changes)


def quick(method: str, **changes: Any) -> ExperimentConfig:
    """A second's work, from which a model learns enough that replay is valid and scores are not all nought."""
    sections: dict[str, Any] = {
        "stream": [{"name": "mini.rest", "train": 40, "test": 10}, {"name": "mini.woz", "train": 32, "test": 10}],
        "training": {"epochs": 3, "batch_size": 4},
        "optim": {"variant": "torch", "lr": 1e-2, "eps": 1e-8, "warmup": 0.1},
        "replay": {"ratio": 1.0, "chunk": 8, "max_length": 64, "capacity": 20},
        "evaluation": {"chunk": 2, "max_new_tokens": 12},
    }
    merged = {
        name: sections.get(name, {}) | value if isinstance(value, dict) else value for name, value in changes.items()
    }
    return experiment(method=method, **sections | merged)


def cluster(transport: str, **changes: Any) -> ClusterConfig:
    """A profile for tests: no CPU is reserved, so that everything fits on whatever machine there is."""
    sections = {"students": {"cpus": 0.5}, "exchange": {"transport": transport}}
    return ClusterConfig.model_validate(sections | changes)


def new_run(config: ExperimentConfig, profile: ClusterConfig, folder: Path) -> tuple[Setup, RunDirectory]:
    """A prepared run directory."""
    setup = prepare(config)
    manifest = {"command": "test", "versions": {}, "platform": "", **facts_as_json(setup.facts)}
    run = RunDirectory.create(folder, setup.experiment, profile, manifest)
    write_folder(run.path / "tokenizer", setup.tokenizer.save)
    return setup, run


def bare_context(setup: Setup, folder: Path) -> RunContext:
    """The context of a run whose directory holds nothing but its state, and whose workers are in this process."""
    run = RunDirectory(folder)
    folder.mkdir(exist_ok=True)
    run.save_state(RunState())
    return new_context(setup, cluster("in_process"), run)


WITHOUT_OTHERS = [name for name, row in METHODS.items() if not row.has_peer_teachers]
"""Methods whose runs need no finished run of another."""

ERRORS: list[RayL4Error] = [
    PeerError("student 0, stage 1, step 1: a loss that is not finite"),
    PeerLostError("student 0: a peer is gone; predictions did not get through"),
    ModelError("the output layer has gone"),
]
"""Errors that a student may raise in a step."""

FAILING_STUDENTS: dict[str, tuple[Topology, int]] = {
    "an isolated student": (isolated(1), 0),
    "student 0 of a pair": (complete(2), 0),
    "student 1 of a pair": (complete(2), 1),
    "a student that nobody learns from": (Topology(2, frozenset({(0, 1)})), 1),
}
"""A topology, and the student in it that fails."""

CALLS: dict[str, Callable[[StudentHandle], PerRank[Any]]] = {
    "ready": StudentHandle.ready,
    "begin": lambda student: student.begin(FENCE, 0, student.rpc.put(None)),
    "forward": lambda student: student.forward(FENCE, 0, ()),
    "backward": lambda student: student.backward(FENCE, 0, student.forward(FENCE, 0, ()), []),
    "weights": StudentHandle.weights,
    "consolidate": StudentHandle.consolidate,
}
"""Calls that all ranks of a student serve, as ``StandIn`` does."""


def handles(rpc: Rpc, ranks: Sequence[Sequence[Any]]) -> list[StudentHandle]:
    """A handle for every student, given its ranks."""
    return [StudentHandle(slot, rpc, own) for slot, own in enumerate(ranks)]


def train(
    students: Sequence[StudentHandle],
    topology: Topology,
    steps: range | Mapping[int, range] = range(2),
    limits: StepRules | None = None,
) -> list[tuple[int, StepFigures]]:
    """Train all students over ``steps``, or each over its own; returns every step and its figures."""
    seen: list[tuple[int, StepFigures]] = []
    train_steps(
        students,
        topology,
        FENCE,
        steps if isinstance(steps, Mapping) else dict.fromkeys(topology.students, steps),
        limits or StepRules(steps_ahead=3, timeout=60.0),
        where="stage 1 (woz.en)",
        on_step=lambda step, figures: seen.append((step, figures)),
    )
    return seen


class StopAt(Progress):
    """A record that stops its run when an event line comes up for the ``occurrence``-th time."""

    def __init__(self, line: str, stop: threading.Event, occurrence: int = 1) -> None:
        super().__init__()
        self.stop = stop
        self._line = line
        self._left = occurrence

    def add_event(self, line: str) -> None:
        super().add_event(line)
        self._left -= line.startswith(self._line)
        if not self._left:
            self.stop.set()


def stopped_run(config: ExperimentConfig, folder: Path, line: str, occurrence: int = 1) -> tuple[Setup, RunDirectory]:
    """A run in this process that was stopped at that event line."""
    profile = cluster("in_process")
    setup, run = new_run(config, profile, folder)
    context = new_context(setup, profile, run)
    context = replace(context, progress=StopAt(line, context.stop, occurrence))
    with pytest.raises(StoppedError, match=re.escape(f"ray-l4 resume {run.path}") + "$"):
        Coordinator(context, LocalSpawner, setup.topology.size).run()
    assert not (run.path / "summary.json").exists()
    return setup, run


class StopAfter(Progress):
    """A record that stops its run after some steps."""

    def __init__(self, context: RunContext, steps: int) -> None:
        super().__init__()
        self._stop = context.stop
        self._left = steps

    def record_step(self, step: int, figures: Mapping[int, dict[str, float]], seconds: float) -> None:
        super().record_step(step, figures, seconds)
        self._left -= 1
        if not self._left:
            self._stop.set()


def run_with_stops(
    setup: Setup, profile: ClusterConfig, run: RunDirectory, steps: int, on_stop: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Complete a run in this process that is stopped after every so many steps; return its summary.

    ``on_stop`` is called after each stop, of which there are two at least.
    """
    for stops in range(20):
        context = new_context(setup, profile, run)
        try:
            stopping = replace(context, progress=StopAfter(context, steps))
            summary = Coordinator(stopping, LocalSpawner, setup.topology.size).run()
        except StoppedError:
            on_stop()
        else:
            assert stops >= 2
            return summary
    pytest.fail("the run does not come to its end")


@contextmanager
def pretended_nodes() -> Iterator[Cluster]:
    """An empty cluster to which nodes can be added: Ray runs one node manager for each of them on this machine."""
    with no_shared_ray():
        cluster = Cluster()
        try:
            yield cluster
        finally:
            ray.shutdown()
            cluster.shutdown()


@contextmanager
def no_shared_ray() -> Iterator[None]:
    """Within this context, the Ray that tests share makes way for another one: a process can have but one."""
    shared = ray.is_initialized()
    ray.shutdown()
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, on_sigterm)  # a node in this process puts a handler of its own in place
        if shared:
            connect(1, SHARED)


def join_nodes(cluster: Cluster) -> None:
    """Make this process a part of the cluster, as a command does."""
    connect(1, ClusterConfig.model_validate({"ray": {"address": cluster.address}}))


def finish(session: Session) -> dict[str, Any]:
    """The summary, once the run has ended."""
    try:
        assert session.wait(LIMIT), f"the run did not end within {LIMIT:g} s: {session.snapshot()}"
        return session.result()
    finally:
        session.close()


def complete_run(config: ExperimentConfig, profile: ClusterConfig, folder: Path) -> tuple[RunDirectory, dict[str, Any]]:
    """A run from beginning to end."""
    setup, run = new_run(config, profile, folder)
    return run, finish(start(setup, profile, run))


def weights(run: RunDirectory) -> dict[str, bytes]:
    """Every checkpoint's bytes by its place in the run directory; without what a killed process has left."""
    paths = sorted((run.path / "checkpoints").glob("stage-*/epoch-*/student-*/*model.safetensors"))
    return {str(path.relative_to(run.path)): path.read_bytes() for path in paths}


def replayed(run: RunDirectory) -> list[dict[str, Any]]:
    """All that was replayed before the second stage; nothing for a method without replay."""
    path = run.path / "replay" / "stage-1.parquet"
    return pq.read_table(path).to_pylist() if path.is_file() else []


def assert_equal(found: RunDirectory, expected: RunDirectory) -> None:
    """What two runs learned, generated and scored is equal, bit for bit; that of their teachers too."""
    mine, theirs = weights(found), weights(expected)
    assert mine.keys() == theirs.keys()
    assert [name for name in theirs if mine[name] != theirs[name]] == []
    assert scores(found) == scores(expected)
    assert replayed(found) == replayed(expected)
    if expected.teachers().exists():
        assert_equal(RunDirectory.open(found.teachers()), RunDirectory.open(expected.teachers()))


def scores(run: RunDirectory) -> dict[str, dict[str, float]]:
    """Every score by the name of its cell."""
    return {cell.name: record["values"] for cell, record in run.scores().items()}
