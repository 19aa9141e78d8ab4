"""Processes that die, and a node that goes, in phases other than training: the result is the undisturbed one.

The coordinator is an object of the test, so that the stroke falls exactly where a phase begins.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster

from ray_l4.cluster.reservation import reserve
from ray_l4.cluster.spawn import RaySpawner
from ray_l4.config.cluster import ClusterConfig
from ray_l4.config.experiment import ExperimentConfig
from ray_l4.monitor.progress import Progress
from ray_l4.run.coordinator import Coordinator, new_context
from tests.run import run_fixtures as small
from tests.run.test_run_faults import actor_processes
from tests.run.test_run_node_loss import FAST

pytestmark = [pytest.mark.ray, pytest.mark.slow]


class StrikeAt(Progress):
    """A record that strikes when a phase begins for the ``occurrence``-th time."""

    def __init__(self, phase: str, occurrence: int, strike: Callable[[], None]) -> None:
        super().__init__()
        self._phase, self._left, self._strike = phase, occurrence, strike

    def update(self, **changes: Any) -> None:
        super().update(**changes)
        self._left -= changes.get("phase") == self._phase
        if not self._left:
            self._left = -1
            self._strike()


def struck_run(config: ExperimentConfig, profile: ClusterConfig, folder: Path, progress: Progress) -> small.Finished:
    """A run whose coordinator is in this process and its workers on Ray."""
    setup, run = small.new_run(config, profile, folder)
    students = setup.topology.size
    reservation = reserve(students, students, profile)
    try:
        context = replace(new_context(setup, profile, run), progress=progress, stop=threading.Event())
        return run, Coordinator(context, partial(RaySpawner, reservation=reservation), students).run()
    finally:
        reservation.release()


VALIDATED = small.quick("l4", evaluation={"validation": 0.4})
DISTILLED = small.quick("l2kd-seq")
CASES = {
    "in validation": (VALIDATED, "validation", 2),
    "while its teacher's answers are generated": (DISTILLED, "replay", 4),
    "in the last scoring": (small.quick("finetune"), "scoring", 1),
}


@pytest.mark.parametrize("case", CASES)
def test_a_student_that_dies_is_replaced_in_every_phase(case: str, tmp_path: Path, ray_cluster: None) -> None:
    config, phase, occurrence = CASES[case]
    expected, _ = small.complete_run(config, small.cluster("in_process"), tmp_path / "expected")
    others, struck = set(actor_processes("Student")), []

    def strike() -> None:
        victim = min(set(actor_processes("Student")) - others)
        os.kill(victim, signal.SIGKILL)
        struck.append(victim)

    progress = StrikeAt(phase, occurrence, strike)
    run, summary = struck_run(config, small.cluster("object_store"), tmp_path / "run", progress)
    assert struck, "the phase came up"
    small.assert_equal(run, expected)
    assert summary["lost_students"] == {}


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head that computes nothing."""
    with small.pretended_nodes() as made:
        made.add_node(num_cpus=0, include_dashboard=False, _system_config=FAST)
        yield made


@pytest.mark.parametrize("which", ["the evaluator's", "the student's"])
def test_scores_that_a_lost_node_was_to_give_are_given_by_another(cluster: Cluster, tmp_path: Path, which: str) -> None:
    """In the last phase the student is idle; its node takes the weights with it that are still to be scored."""
    kinds: dict[str, dict[str, Any]] = {
        "the student's": {"num_cpus": 1},
        "the evaluator's": {"num_cpus": 0, "resources": {"scoring": 1}},
    }
    nodes = {kind: cluster.add_node(include_dashboard=False, **has) for kind, has in kinds.items()}
    small.join_nodes(cluster)
    config = small.quick("finetune", evaluation={"when": "epoch", "chunk": 1})
    expected, _ = small.complete_run(config, small.cluster("in_process"), tmp_path / "expected")
    profile = small.cluster("object_store", students={"cpus": 1}, evaluators={"resources": {"scoring": 0.5}})

    def strike() -> None:
        cluster.remove_node(nodes[which], allow_graceful=False)
        cluster.add_node(include_dashboard=False, **kinds[which])

    run, summary = struck_run(config, profile, tmp_path / "run", StrikeAt("scoring", 1, strike))
    small.assert_equal(run, expected)
    assert summary["lost_students"] == {}
