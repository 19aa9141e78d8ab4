"""``launch/slurm/wait_for_nodes.py`` on a running cluster."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path

import pytest
import ray

SCRIPT = Path(__file__).resolve().parents[2] / "launch" / "slurm" / "wait_for_nodes.py"


@pytest.fixture
def wait_for() -> Callable[[int, str, float], None]:
    return runpy.run_path(str(SCRIPT))["wait_for"]


@pytest.mark.usefixtures("ray_cluster")
def test_it_returns_when_the_nodes_have_joined_and_fails_otherwise(
    wait_for: Callable[[int, str, float], None],
) -> None:
    address = ray.get_runtime_context().gcs_address
    wait_for(1, address, 20.0)
    with pytest.raises(SystemExit, match=f"1 of 2 nodes have joined the Ray cluster at {address} within 0.1 s"):
        wait_for(2, address, 0.1)
