"""The copy of a run grows beside it, and trouble with the copy is no trouble of the run."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from ray_l4.config.cluster import ClusterConfig
from ray_l4.run.mirroring import Mirroring
from ray_l4.store.atomic import write_text
from ray_l4.store.mirror import Mirror
from ray_l4.store.run_directory import RunDirectory
from tests.run import run_fixtures as small


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(tmp_path / "run", small.experiment(), ClusterConfig(), {})


def profile(storage: Path) -> ClusterConfig:
    return ClusterConfig(storage_path=str(storage))


def test_nobody_waits_for_a_copy_but_at_the_end(
    run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_on, push = threading.Event(), Mirror.push

    def slow(self: Mirror, run_path: Path) -> int:
        assert goes_on.wait(30)
        return push(self, run_path)

    monkeypatch.setattr(Mirror, "push", slow)
    (tmp_path / "nfs").mkdir()
    mirroring = Mirroring(run, profile(tmp_path / "nfs"), pytest.fail)
    mirroring.push()
    mirroring.push()
    assert not (tmp_path / "nfs" / "run").exists()
    write_text(run.path / "report.md", "all is well")
    goes_on.set()
    mirroring.finish()
    assert (tmp_path / "nfs" / "run" / "report.md").read_text() == "all is well"
    write_text(run.path / "report.md", "better")
    mirroring.finish()
    assert (tmp_path / "nfs" / "run" / "report.md").read_text() == "better", "it can be used again"


def test_a_line_that_is_too_slow_does_not_pile_up_work(
    run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits for its turn copies all that there is by then, so one is enough."""
    began, goes_on, pushes = threading.Event(), threading.Event(), 0

    def slow(self: Mirror, run_path: Path) -> int:
        nonlocal pushes
        pushes += 1
        began.set()
        assert goes_on.wait(30)
        return 0

    monkeypatch.setattr(Mirror, "push", slow)
    mirroring = Mirroring(run, profile(tmp_path), pytest.fail)
    mirroring.push()
    assert began.wait(30)
    for _ in range(5):
        mirroring.push()
    goes_on.set()
    mirroring.finish()
    assert pushes in (2, 3), "the first, one for the five, and one more if the five's had begun"


def test_a_storage_that_is_gone_for_a_while_is_told_of_and_made_up_for(run: RunDirectory, tmp_path: Path) -> None:
    news: list[str] = []
    mirroring = Mirroring(run, profile(tmp_path / "nfs"), news.append)
    mirroring.finish()
    assert len(news) == 1
    assert "warning: storage_path: " in news[0]
    assert "no such folder" in news[0]
    assert news[0].endswith("The run goes on; the next copy includes what is missing.")
    (tmp_path / "nfs").mkdir()
    mirroring.finish()
    assert len(news) == 1
    assert (tmp_path / "nfs" / "run" / "state.json").is_file()


def test_what_is_nobodys_mistake_is_not_swallowed(
    run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Mirror, run_path: Path) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(Mirror, "push", broken)
    with pytest.raises(ZeroDivisionError):
        Mirroring(run, profile(tmp_path), pytest.fail).finish()


def test_without_a_storage_nothing_is_copied(run: RunDirectory, tmp_path: Path) -> None:
    mirroring = Mirroring(run, ClusterConfig(), pytest.fail)
    mirroring.push()
    mirroring.finish()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.slow
def test_teachers_are_copied_as_the_part_of_a_run_that_they_are(tmp_path: Path) -> None:
    (tmp_path / "nfs").mkdir()
    cluster = small.cluster("in_process", storage_path=str(tmp_path / "nfs"))
    run, _ = small.complete_run(small.quick("l2kd-seq"), cluster, tmp_path / "run")
    expected = files(run.path)
    del expected["summary.json"]  # it is written after all that the coordinator copies; the command copies it
    assert "teachers/summary.json" in expected
    assert files(tmp_path / "nfs" / "run") == expected


def files(folder: Path) -> dict[str, bytes]:
    """Every file's contents, without the list that a copy has."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != ".mirror.json")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
