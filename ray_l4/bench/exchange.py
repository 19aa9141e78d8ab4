"""``ray-l4 bench exchange``: the cost of exchanging predictions between students."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from itertools import groupby

import ray

from ray_l4.bench.gradient_error import Fidelity, Gradients
from ray_l4.bench.grid import BenchCase, BenchGrid
from ray_l4.bench.isolated_process import IsolatedProcess
from ray_l4.bench.record import Record
from ray_l4.bench.students import BenchStudents, OneProcess, OnRay
from ray_l4.bench.summary import Measurements, Repeat, StepSeries, summarise
from ray_l4.cluster.connection import connect
from ray_l4.config.cluster import ExchangeConfig
from ray_l4.setup.setup import Setup

Progress = Callable[[str], None]
"""Receives a line of text at the start of every measurement."""

_WARM_UP = 3
"""Steps that are not measured: pages of the object store are slow when first touched (REFERENCE.md#ray), and it comes
to hold the predictions of several steps."""
_PUBLISH_ATTEMPTS = 7
"""Times that publishing is measured by itself."""


def measure(grid: BenchGrid, progress: Progress) -> Iterator[Record]:
    """Yield the record of each case at each number of peers, as soon as it is measured.

    Raises ConfigError for an impossible grid, ClusterError if there is no room for it, PeerError if a student dies.
    """
    cases = grid.cases()
    grid.require_room(cases)
    with _cluster(grid, cases):
        for peers in grid.peers:
            setup = grid.workload.setup(peers, _max_steps(grid, peers))
            progress(f"{peers} peers: loss gradients")
            fidelities = _fidelities(setup, cases)
            for codec, group in groupby(cases, key=lambda case: (case.codec, case.precision)):
                yield from _measure_codec(grid, setup, list(group), fidelities[codec], progress)


def _measure_codec(
    grid: BenchGrid, setup: Setup, cases: Sequence[BenchCase], fidelity: Fidelity, progress: Progress
) -> Iterator[Record]:
    """Yield the records of one codec with every transport, each measured in turns with the baseline."""
    peers = setup.topology.size
    with _students(grid, setup, cases[0].baseline) as baseline:
        baseline.train(_WARM_UP)
        baseline_steps: list[StepSeries] = []
        # The case that is the baseline itself comes last: by then it has been measured beside the others.
        for case in sorted(cases, key=lambda case: case.in_process):
            progress(f"{peers} peers, {case.codec} {case.precision}, {case.transport}")
            if case.in_process:
                series = baseline_steps or [_timed_steps(grid, baseline) for _ in range(grid.repeats)]
                yield _record(grid, case, baseline, [Repeat(steps, steps) for steps in series], fidelity)
                continue
            with _students(grid, setup, case) as students:
                students.train(_WARM_UP)
                repeats = [
                    Repeat(_timed_steps(grid, baseline), _timed_steps(grid, students)) for _ in range(grid.repeats)
                ]
                baseline_steps += [repeat.baseline for repeat in repeats]
                yield _record(grid, case, students, repeats, fidelity)


def _timed_steps(grid: BenchGrid, students: BenchStudents) -> StepSeries:
    """Train the steps of a repeat; return the figures of all but the first, before which nothing was submitted."""
    return students.train(1 + grid.steps_per_repeat(students.peers))[1:]


def _record(
    grid: BenchGrid, case: BenchCase, students: BenchStudents, repeats: Sequence[Repeat], fidelity: Fidelity
) -> Record:
    peak = students.peak_memory()  # before publishing is measured, so that it is the peak of training
    publishing = students.publish_seconds(_PUBLISH_ATTEMPTS) if case.by_reference else []
    return summarise(grid, case, Measurements(students.peers, repeats, students.steps, publishing, peak, fidelity))


@contextmanager
def _students(grid: BenchGrid, setup: Setup, case: BenchCase) -> Iterator[BenchStudents]:
    profile = grid.profile(case, setup.topology.size)
    with closing(OneProcess(setup, profile) if case.in_process else OnRay(setup, profile)) as students:
        yield students


@contextmanager
def _cluster(grid: BenchGrid, cases: Sequence[BenchCase]) -> Iterator[None]:
    """Provide a Ray cluster if any case needs one: the one at the grid's address, one that this process has joined
    already, or a local one, which is shut down at the end."""
    on_ray = [case for case in cases if not case.in_process]
    if not on_ray or (ray.is_initialized() and grid.resources.address is None):
        yield
        return
    most = max(grid.peers)
    connect(most, grid.profile(on_ray[0], most))
    try:
        yield
    finally:
        ray.shutdown()


def _fidelities(setup: Setup, cases: Sequence[BenchCase]) -> Mapping[tuple[str, str], Fidelity]:
    """Return the fidelity of every (codec, precision), computed in a process that gives its memory back by ending."""
    wanted = list(dict.fromkeys((case.codec, case.precision) for case in cases))
    exchanges = [ExchangeConfig.model_validate({"codec": codec, "precision": precision}) for codec, precision in wanted]
    with closing(IsolatedProcess(Gradients, setup)) as process:
        return dict(zip(wanted, process.call("fidelities", exchanges), strict=True))


def _max_steps(grid: BenchGrid, peers: int) -> int:
    """Return the largest number of steps that any students learn while one codec is measured."""
    return _WARM_UP + (1 + len(grid.transports)) * grid.repeats * (1 + grid.steps_per_repeat(peers)) + 1
