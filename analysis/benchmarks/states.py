"""What a state every N steps costs: steps with and without states, in turns, in one run.

::

    python -m analysis.benchmarks.states [EXPERIMENT.yaml] [--transport in_process] [--csv FILE]

Two students learn the first task of the experiment (by default the model of real-small.yaml on an embedded task) as in
a run: the same step loop, figures, curves and thread that writes. A block is one epoch, over the same examples each
time, and ends when its states are on disk. Blocks with and without states take turns (without, with, with, without),
after one that is not measured. Neighbours make a pair; the result is the median of the pairs' ratios. CPU seconds are
those of this process, which coordinates, and of all processes that it started: students and Ray.
The floor is what it takes to write and flush as many bytes as a state has to the same disk.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray

from analysis.command import exit_status
from ray_l4.cluster.connection import connect
from ray_l4.cluster.membership import Membership
from ray_l4.cluster.reservation import reserve
from ray_l4.cluster.spawn import LocalSpawner, RaySpawner, Spawner
from ray_l4.config.cluster import ClusterConfig
from ray_l4.config.experiment import ExperimentConfig
from ray_l4.config.loading import load_experiment
from ray_l4.methods import num_students
from ray_l4.report.markdown import table
from ray_l4.run.checkpoints import Checkpoints
from ray_l4.run.coordinator import new_context
from ray_l4.run.examples import StageExamples
from ray_l4.run.stage_training import StageTrainer, StageTraining
from ray_l4.run.state_keeper import StateKeeper
from ray_l4.run.states import States
from ray_l4.run.work_queue import WorkQueue
from ray_l4.setup.facts import facts_as_json
from ray_l4.setup.setup import Setup, prepare
from ray_l4.setup.stage_plan import StagePlan
from ray_l4.store.run_directory import RunDirectory

MODEL = Path(__file__).parents[2] / "launch/experiments/real-small.yaml"
STREAM = ["mini.woz"]
TURNS = (False, True, True, False)
"""Whether a block has states, block by block, again and again: a drift of the machine is in both kinds alike."""
PROBES = 5
"""Times that the floor is measured."""


class InTurns(States):
    """States that are taken only while they are switched on."""

    on = False
    taken = 0

    def due(self) -> bool:
        is_due = super().due() and self.on
        self.taken += is_due
        return is_due


@dataclass(frozen=True)
class Block:
    """The measured steps of one block."""

    states: int
    """States that were written; 0 in a block without."""
    steps: int
    wall_seconds: float
    cpu_seconds: float
    students_cpu_seconds: float
    """The part of ``cpu_seconds`` that students took."""


@dataclass(frozen=True)
class Result:
    """All blocks, and what writing the bytes of a state takes."""

    blocks: Sequence[Block]
    state_bytes: int
    floor_seconds: float

    def cost(self, figure: str) -> list[float]:
        """Return, for each pair of neighbours, by what share the block with states took more than the one without."""
        pairs = zip(self.blocks[::2], self.blocks[1::2], strict=False)
        return [_ratio(*pair, figure) - 1 for pair in pairs]

    def seconds_of_state(self, figure: str) -> float:
        """Return the median over the pairs of what one state took."""
        plain = statistics.median(getattr(own, figure) for own in self.blocks if not own.states)
        states = next(own.states for own in self.blocks if own.states)
        return statistics.median(self.cost(figure)) * plain / states


def _ratio(one: Block, other: Block, figure: str) -> float:
    with_states, without = (one, other) if one.states else (other, one)
    return float(getattr(with_states, figure)) / float(getattr(without, figure))


def experiment(path: Path | None, every_steps: int, steps: int, blocks: int) -> ExperimentConfig:
    """Return the experiment whose first task is learned in blocks of ``steps``, with one block to warm up."""
    given = load_experiment(path or MODEL)
    size = given.training.batch_size
    document: dict[str, Any] = given.model_dump(mode="json")
    stream = document["stream"][:1] if path else [{"name": name} for name in STREAM]
    size = 8 if size == "auto" else size
    stream[0] |= {"train": steps * size, "test": 1}
    document["stream"] = stream
    document["training"] |= {"epochs": blocks + 1, "batch_size": size}
    document["checkpoint"] |= {"every_steps": every_steps, "every_minutes": None}
    return ExperimentConfig.model_validate(document)


def profile(transport: str) -> ClusterConfig:
    """Return a profile with a thread for each student."""
    sections = {"ray": {"object_store_memory": 500_000_000}, "students": {"cpus": 0.5, "threads": 1}}
    return ClusterConfig.model_validate({"name": "states", "exchange": {"transport": transport}, **sections})


def measure(config: ExperimentConfig, cluster: ClusterConfig, blocks: int, folder: Path) -> Result:
    """Learn one block to warm up and ``blocks`` that are measured, in a run directory in ``folder``."""
    setup = prepare(config)
    manifest = {"command": "benchmark", "versions": {}, "platform": "", **facts_as_json(setup.facts)}
    directory = RunDirectory.create(folder / "run", setup.experiment, cluster, manifest)
    with _spawner(setup, cluster) as spawner, ThreadPoolExecutor(max_workers=1) as disk:
        training, states = _begun(setup, cluster, directory, spawner, disk)
        training.train(range(1, 2))
        measured = []
        for index in range(blocks):
            states.on = TURNS[index % len(TURNS)]
            measured.append(_block(training, states, directory, index + 2))
        newest = next((directory.path / "states").glob("stage-*"))
        size = sum(file.stat().st_size for file in newest.iterdir())
    return Result(measured, size, statistics.median(_seconds_to_write(folder, size) for _ in range(PROBES)))


@contextmanager
def _spawner(setup: Setup, cluster: ClusterConfig) -> Iterator[Spawner]:
    peers = range(setup.topology.size)
    if cluster.in_one_process:
        yield LocalSpawner(setup, cluster, peers)
        return
    connect(len(peers), cluster)
    try:
        yield RaySpawner(setup, cluster, peers, (), reserve(len(peers), len(peers), cluster))
    finally:
        ray.shutdown()


def _begun(
    setup: Setup, cluster: ClusterConfig, directory: RunDirectory, spawner: Spawner, disk: ThreadPoolExecutor
) -> tuple[StageTraining, InTurns]:
    """Start the students and have them begin the first stage."""
    context, students = new_context(setup, cluster, directory), num_students(setup.experiment)
    plan = StagePlan.of(setup, students)
    membership = Membership(spawner, cluster, setup.topology)
    membership.await_start()
    states = InTurns(context, StateKeeper(context), membership, disk)
    checkpoints, limits = Checkpoints(context, membership, disk), cluster.timeouts
    queue = WorkQueue(spawner.rpc, spawner.evaluators(), limits.work, context.timeline, limits.start)
    examples = StageExamples(context, spawner.rpc, membership, queue, checkpoints, None)
    trainer = StageTrainer(context, spawner.rpc, plan, membership, examples, None, states, lambda: None)
    return trainer.begin(plan.assignments(0, setup.topology.students), None, lambda: None), states


def _block(training: StageTraining, states: InTurns, directory: RunDirectory, epoch: int) -> Block:
    before, began = _cpu_seconds(), time.perf_counter()
    training.train(range(epoch, epoch + 1))
    states.finish()
    wall, after = time.perf_counter() - began, _cpu_seconds()
    rows = [row for row in directory.step_figures() if row["epoch"] == epoch]
    steps = len({row["step"] for row in rows})
    used = {name: after[name] - before[name] for name in after}
    number = states.taken
    states.taken = 0
    return Block(number, steps, wall, sum(used.values()), used["students"])


def _cpu_seconds() -> Mapping[str, float]:
    """Return the CPU seconds so far of students, and of this process and all others that it started."""
    ticks: dict[int, tuple[int, int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError):  # it has ended meanwhile
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                ticks[int(folder.name)] = int(fields[1]), int(fields[11]) + int(fields[12])
    own = {os.getpid()}
    while more := {process for process, (parent, _) in ticks.items() if parent in own} - own:
        own |= more
    found = {"students": 0.0, "others": 0.0}
    for process in own:
        with suppress(OSError):
            is_student = Path(f"/proc/{process}/cmdline").read_bytes().startswith(b"ray::Student")
            found["students" if is_student else "others"] += ticks[process][1] / os.sysconf("SC_CLK_TCK")
    return found


def _seconds_to_write(folder: Path, size: int) -> float:
    data, path = os.urandom(size), folder / "probe"
    began = time.perf_counter()
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    seconds = time.perf_counter() - began
    path.unlink()
    return seconds


def machine() -> str:
    """Name this machine."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine()
    )
    return f"{len(os.sched_getaffinity(0))} cores of {model}, load {os.getloadavg()[0]:.1f}"


def report(result: Result, every_steps: int) -> str:
    """Return the result as text."""
    figures = {"wall": "wall_seconds", "CPU": "cpu_seconds", "CPU of students": "students_cpu_seconds"}
    steps = next(own.steps for own in result.blocks)
    rows = []
    for name, figure in figures.items():
        plain = [getattr(own, figure) / steps for own in result.blocks if not own.states]
        if not any(plain):
            continue
        costs = result.cost(figure)
        rows.append((
            name,
            f"{1e3 * statistics.median(plain):.1f}",
            f"{1e3 * result.seconds_of_state(figure):.0f}",
            f"{100 * statistics.median(costs):+.2f} %",
            f"{100 * min(costs):+.2f} to {100 * max(costs):+.2f} %",
        ))  # fmt: skip
    head = ("seconds", "ms of a step without", "ms of a state", f"cost, every {every_steps} steps", "pairs")
    return (
        f"{machine()}; a state has {result.state_bytes / 1e6:.1f} MB; to write and flush as many bytes: "
        f"{1e3 * result.floor_seconds:.0f} ms\n\n{table(head, rows)}"
    )


def _write_csv(result: Result, path: Path, transport: str) -> None:
    rows = [
        {"transport": transport, "block": index, **asdict(own)}
        | {"state_bytes": result.state_bytes, "floor_seconds": result.floor_seconds, "machine": machine()}
        for index, own in enumerate(result.blocks)
    ]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", nargs="?", type=Path, metavar="EXPERIMENT.yaml")
    parser.add_argument("--transport", default="object_store", help="or in_process, without Ray")
    parser.add_argument("--every", type=int, default=50, help="steps after which a state is taken")
    parser.add_argument("--steps", type=int, default=100, help="steps of a block")
    parser.add_argument("--blocks", type=int, default=12, help="measured blocks, a multiple of 4")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write a row for each block to FILE")
    given = parser.parse_args(arguments)

    def work() -> None:
        config, cluster = experiment(given.experiment, given.every, given.steps, given.blocks), profile(given.transport)
        with tempfile.TemporaryDirectory() as folder:
            result = measure(config, cluster, given.blocks, Path(folder))
        print(f"{given.transport}: {report(result, given.every)}")
        if given.csv:
            _write_csv(result, given.csv, given.transport)

    return exit_status(work)


if __name__ == "__main__":
    sys.exit(main())
