"""``ray-l4 bench exchange``: what it costs students to tell each other what they predict."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from itertools import groupby

import ray

from ray_l4.bench.gradient_error import Fidelity, Gradients
from ray_l4.bench.grid import Plan, Way
from ray_l4.bench.isolated_process import Fresh
from ray_l4.bench.record import Record
from ray_l4.bench.students import BenchStudents, OneProcess, OnRay
from ray_l4.bench.summary import Measured, Round, Turn, summarised
from ray_l4.cluster.connection import connect
from ray_l4.config.cluster import ExchangeConfig
from ray_l4.setup.setup import Setup

Say = Callable[[str], None]

_WARM_UP = 3
"""Steps of which nothing is kept: pages of the object store are slow when touched first (RAY.md 2), and predictions of
several steps are in it."""
_ATTEMPTS = 7
"""Times that predictions are published on their own."""


def measure(plan: Plan, say: Say) -> Iterator[Record]:
    """One record for each number of peers and each way, as soon as it is known. ``say`` is told what is going on.

    Raises ConfigError for a plan that cannot be, ClusterError if there is no room for it, PeerError if a student dies.
    """
    ways = plan.ways()
    plan.refuse_without_room(ways)
    with _cluster(plan, ways):
        for peers in plan.peers:
            setup = plan.workload.setup(peers, _most_steps(plan, peers))
            say(f"{peers} peers: loss gradients")
            known = _fidelities(plan, setup, ways)
            for codec, group in groupby(ways, key=lambda way: (way.codec, way.precision)):
                yield from _one_codec(plan, setup, list(group), known[codec], say)


def _one_codec(plan: Plan, setup: Setup, ways: Sequence[Way], fidelity: Fidelity, say: Say) -> Iterator[Record]:
    """Every transport, in turns with the same students in one process: a round there, a round here."""
    peers = setup.topology.size
    with _students(plan, setup, ways[0].alone) as alone:
        alone.train(_WARM_UP)
        beside: list[Turn] = []
        # What runs in one process comes last: by then it has been measured beside the others.
        for way in sorted(ways, key=lambda way: way.in_one_process):
            say(f"{peers} peers, {way.codec} {way.precision}, {way.transport}")
            if way.in_one_process:
                turns = beside or [_turn(plan, alone) for _ in range(plan.repeats)]
                yield _record(plan, way, alone, [Round(turn, turn) for turn in turns], fidelity)
                continue
            with _students(plan, setup, way) as cohort:
                cohort.train(_WARM_UP)
                rounds = [Round(_turn(plan, alone), _turn(plan, cohort)) for _ in range(plan.repeats)]
                beside += [both.alone for both in rounds]
                yield _record(plan, way, cohort, rounds, fidelity)


def _turn(plan: Plan, cohort: BenchStudents) -> Turn:
    """Figures of a few steps; of the first one, which begins with nothing under way, none are kept."""
    return cohort.train(1 + plan.steps_of(cohort.peers))[1:]


def _record(plan: Plan, way: Way, cohort: BenchStudents, rounds: Sequence[Round], fidelity: Fidelity) -> Record:
    peak = cohort.peak_memory()  # of training alone, hence first
    publishing = cohort.publish_seconds(_ATTEMPTS) if way.by_reference else []
    measured = Measured(cohort.peers, rounds, cohort.steps, publishing, peak, fidelity)
    return summarised(plan, way, measured)


@contextmanager
def _students(plan: Plan, setup: Setup, way: Way) -> Iterator[BenchStudents]:
    profile = plan.profile(way, setup.topology.size)
    with closing(OneProcess(setup, profile) if way.in_one_process else OnRay(setup, profile)) as cohort:
        yield cohort


@contextmanager
def _cluster(plan: Plan, ways: Sequence[Way]) -> Iterator[None]:
    """A cluster if any way needs one: that of the plan, one that is joined already, or one that ends with this."""
    on_ray = [way for way in ways if not way.in_one_process]
    if not on_ray or (ray.is_initialized() and plan.address is None):
        yield
        return
    most = max(plan.peers)
    connect(most, plan.profile(on_ray[0], most))
    try:
        yield
    finally:
        ray.shutdown()


def _fidelities(plan: Plan, setup: Setup, ways: Sequence[Way]) -> Mapping[tuple[str, str], Fidelity]:
    """Codec and precision -> what it does to a gradient; found in a process that ends, with the memory it took."""
    wanted = list(dict.fromkeys((way.codec, way.precision) for way in ways))
    exchanges = [ExchangeConfig.model_validate({"codec": codec, "precision": precision}) for codec, precision in wanted]
    with closing(Fresh(Gradients, setup)) as process:
        return dict(zip(wanted, process.ask("fidelities", exchanges), strict=True))


def _most_steps(plan: Plan, peers: int) -> int:
    """No students learn more than this in the whole measurement of a codec."""
    return _WARM_UP + (1 + len(plan.transports)) * plan.repeats * (1 + plan.steps_of(peers)) + 1
