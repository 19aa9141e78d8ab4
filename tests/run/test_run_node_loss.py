"""A node that goes in the middle of training, with everything on it. The nodes are pretended, as in the other file."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from ray_l4.run.session import start
from tests.run import run_fixtures as small

pytestmark = pytest.mark.ray

FAST = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 3,
}
"""A node is given up after two seconds: Ray's own patience is half a minute."""


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head that computes nothing."""
    with small.pretended_nodes() as made:
        made.add_node(num_cpus=0, include_dashboard=False, resources={"scoring": 1}, _system_config=FAST)
        yield made


def test_a_student_whose_node_is_gone_is_replaced_on_another(cluster: Cluster, tmp_path: Path) -> None:
    """Each student on a node of its own; the one that takes the lost node's place comes after the loss."""
    nodes = [cluster.add_node(num_cpus=1, include_dashboard=False) for _ in range(2)]
    small.join_nodes(cluster)
    config = small.long_enough()
    expected, _ = small.complete_run(config, small.cluster("in_process"), tmp_path / "expected")
    profile = small.cluster("object_store", students={"cpus": 1}, evaluators={"resources": {"scoring": 0.5}})
    setup, run = small.new_run(config, profile, tmp_path / "run")
    session = start(setup, profile, run)
    deadline = time.monotonic() + small.LIMIT
    while (now := session.snapshot()).phase != "training" or now.step < 3:
        assert not session.wait(0.05), session.result()
        assert time.monotonic() < deadline
    cluster.remove_node(nodes[1], allow_graceful=False)
    cluster.add_node(num_cpus=1, include_dashboard=False)
    assert session.wait(small.LIMIT)
    events = "\n".join(session.snapshot().events)
    summary = small.finish(session)
    assert "is lost and replaced" in events
    assert summary["restarts"] >= 1
    small.assert_equal(run, expected)
