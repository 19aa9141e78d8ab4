"""What all tests share: the folder of real data sets, where there is one, one Ray, and no way to the network."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import settings

# No test may download: the libraries are told so before they are imported.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# One thread: tests run beside each other, and results in the last bits depend on it.
torch.set_num_threads(1)

# How long an example takes says nothing here: the machine may be busy with other tests.
settings.register_profile("ray_l4", deadline=None)
settings.load_profile("ray_l4")

if TYPE_CHECKING:
    from tests.run.run_fixtures import Finished

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder that holds ``raw/``, ``tokenizer/`` and ``models/``; tests that need it are skipped without it."""
    folder = Path(os.environ.get("RAY_L4_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "raw").is_dir():
        pytest.skip(f"no data sets at {folder} (set RAY_L4_DATA to the folder that holds raw/)")
    return folder


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One local Ray with four CPUs for the whole session: starting it takes longer than most tests that use it."""
    import ray

    from ray_l4.cluster.connection import connect
    from tests.run.run_fixtures import SHARED

    connect(1, SHARED)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Finished]:
    """Method -> its ``quick`` run in this process, undisturbed; made once for all tests that look at it."""
    from tests.run import run_fixtures as small

    runs: dict[str, Finished] = {}

    def of(method: str) -> Finished:
        if method not in runs:
            folder = tmp_path_factory.mktemp(method) / "run"
            runs[method] = small.complete_run(small.quick(method), small.cluster("in_process"), folder)
        return runs[method]

    return of
