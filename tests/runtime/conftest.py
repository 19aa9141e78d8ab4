"""One Ray for all runtime tests of a session: starting it costs more than most of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import ray

from ray_l4.config.cluster import ClusterConfig
from ray_l4.runtime.session import connect


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A local cluster with four CPUs, whatever the machine has."""
    connect(1, ClusterConfig.model_validate({"ray": {"num_cpus": 4, "object_store_memory": 200_000_000}}))
    yield
    ray.shutdown()
