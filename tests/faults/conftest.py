"""The undisturbed runs, with which runs that got faults are compared."""

from __future__ import annotations

import pytest

from analysis.faults.subjects import References
from tests.faults.faults_fixtures import references_for


@pytest.fixture(scope="session")
def references(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> References:
    return references_for(tmp_path_factory, worker_id)
