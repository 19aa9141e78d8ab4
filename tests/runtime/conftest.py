"""One Ray for all runtime tests of a session: starting it costs more than most of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import ray

from ray_l4.runtime.session import connect
from tests.runtime import runtime_fixtures as small


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A local cluster with four CPUs, whatever the machine has."""
    connect(1, small.SHARED)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], small.Finished]:
    """Method -> its ``quick`` run in this process, undisturbed; made once for all tests that look at it."""
    runs: dict[str, small.Finished] = {}

    def of(method: str) -> small.Finished:
        if method not in runs:
            folder = tmp_path_factory.mktemp(method) / "run"
            runs[method] = small.complete_run(small.quick(method), small.cluster("in_process"), folder)
        return runs[method]

    return of
