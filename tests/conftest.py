"""Settings and fixtures of all tests: no network, no deadlines, one Ray, real data sets if available, ``--quick``."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from filelock import FileLock
from hypothesis import settings

from tests.scheduling import GROUP_OF_MARK, FileScheduling, group_of

# No test may download anything. Set before the libraries are imported, which read it then.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# No deadline for examples: the machine may be busy with other work. A quick run tries fewer of them.
settings.register_profile("ray_l4", deadline=None)
settings.register_profile("ray_l4-quick", deadline=None, max_examples=25)

if TYPE_CHECKING:
    import torch
    from playwright.sync_api import Browser

    from tests.run.run_fixtures import Finished

REPOSITORY = Path(__file__).resolve().parent.parent

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
"""Names of the browser that tests use."""
SWITCHES = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]

MARK_OF_FIXTURE = {"ray_cluster": "ray", "browser": "browser", "gpu": "gpu"}
"""Tests that use one of these fixtures get the mark."""
NOT_QUICK = ("ray", "browser", "end_to_end", "processes", "slow", "faults")
"""Marks of tests that ``--quick`` leaves out."""
NO_RAY = "/dev/null/mark-the-test-with-ray"
"""Ray's folder in a quick run: it cannot be created, so that Ray fails to start, in other processes too."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help=f"leave out tests marked {', '.join(NOT_QUICK)}")
    parser.addoption("--full", action="store_true", help="run the documentation's experiments at their full size")


def pytest_configure(config: pytest.Config) -> None:
    settings.load_profile("ray_l4-quick" if config.option.quick else "ray_l4")
    if config.getoption("dist", "no") == "no":  # this process runs tests, rather than distributing them
        import torch

        # The last bits of results depend on the number of threads, and several test processes may share the machine.
        torch.set_num_threads(1)
    if config.option.quick:
        selected = [f"({config.option.markexpr})"] if config.option.markexpr else []
        config.option.markexpr = " and ".join([*selected, *(f"not {mark}" for mark in NOT_QUICK)])
        os.environ["RAY_TMPDIR"] = NO_RAY


@pytest.hookimpl(tryfirst=True)  # before tests are selected by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for name in getattr(item, "fixturenames", ()):
            if name in MARK_OF_FIXTURE:
                item.add_marker(MARK_OF_FIXTURE[name])
        if any(map(item.get_closest_marker, GROUP_OF_MARK)) and group_of(item.path) not in GROUP_OF_MARK.values():
            raise pytest.UsageError(f"{item.path}: one of pytest.mark.{'|'.join(GROUP_OF_MARK)} must stand in the file")


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> FileScheduling | None:
    return FileScheduling(config, log) if config.getvalue("dist") == "loadgroup" else None


@pytest.fixture(autouse=True)
def _no_ray_in_quick_runs(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test of a quick run that leaves Ray initialised."""
    yield
    ray = sys.modules.get("ray")
    if request.config.option.quick and ray is not None and ray.is_initialized():
        ray.shutdown()
        pytest.fail("the test uses Ray: mark it with pytest.mark.ray, or use the fixture ray_cluster")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with ``raw/``, ``tokenizer/`` and ``models/``. Skips the test if there is none."""
    folder = Path(os.environ.get("RAY_L4_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "raw").is_dir():
        pytest.skip(f"no data sets at {folder} (set RAY_L4_DATA to the folder that holds raw/)")
    return folder


@pytest.fixture(scope="session")
def gpu() -> torch.device:
    """The first GPU. Skips the test if there is none."""
    import torch

    if not torch.cuda.is_available():
        pytest.skip("PyTorch sees no GPU")
    return torch.device("cuda", 0)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless Chromium. Skips the test if there is none."""
    found = next((path for name in CHROMIUM if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(CHROMIUM)} is installed (Debian: apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=SWITCHES)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A local Ray cluster with four CPUs for the whole session: it takes longer to start than most tests to run."""
    import ray

    from ray_l4.cluster.connection import connect
    from tests.run.run_fixtures import SHARED

    connect(1, SHARED)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Callable[[str], Finished]:
    """Function that returns the finished ``quick`` run of a method, made once for all tests in all test processes."""
    from ray_l4.store.run_directory import RunDirectory
    from tests.run import run_fixtures as small

    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "finished-runs"
    folder.mkdir(exist_ok=True)

    def of(method: str) -> Finished:
        run = RunDirectory(folder / method)
        with FileLock(f"{run.path}.lock"):
            if not (run.path / "summary.json").is_file():
                small.complete_run(small.quick(method), small.cluster("in_process"), run.path)
        return run, run.summary()

    return of
