"""Fixtures of the tests of the service."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

from ray_l4.store.run_directory import RunDirectory
from tests.serve.serve_fixtures import Served, serving

if TYPE_CHECKING:
    from tests.run.run_fixtures import Finished


@pytest.fixture(scope="session")
def run(finished: Callable[[str], Finished]) -> RunDirectory:
    """A finished run of two tasks, which tests may not change."""
    return finished("l4")[0]


@pytest.fixture(scope="module")
def served(run: RunDirectory) -> Iterator[Served]:
    """A service of the run, for the tests of one file."""
    with serving(run.path) as service:
        yield service
