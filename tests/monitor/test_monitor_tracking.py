"""A tracker gets the curves, on a thread of its own; however it fails, the run goes on and is told once."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from ray_l4.cli.options import tracked
from ray_l4.config.cluster import ClusterConfig
from ray_l4.errors import ConfigError
from ray_l4.monitor.curves import Curves
from ray_l4.monitor.trackers import TRACKERS, MlflowWriter, TrackedRun, WandbWriter, flattened
from ray_l4.monitor.tracking import PACKAGES, Point, QueuedWriter, check_tracker
from ray_l4.store.run_directory import Cell
from tests.run import run_fixtures as small


class Memory:
    """A tracker that remembers, and fails at a point if it is told to."""

    def __init__(self, fails_at: int = -1, blocked: threading.Event | None = None) -> None:
        self.points: list[Point] = []
        self.closed = False
        self._fails_at = fails_at
        self._blocked = blocked

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        if self._blocked is not None:
            self._blocked.wait(20)
        if len(self.points) == self._fails_at:
            raise ConnectionError("no route to host\nand more")
        self.points.append((tag, value, step))

    def close(self) -> None:
        self.closed = True


def test_a_tracker_gets_the_curves_of_tensorboard(tmp_path: Path) -> None:
    memory, warnings = Memory(), list[str]()
    curves = Curves(tmp_path, 10, QueuedWriter("fake", lambda: memory, warnings.append))
    curves.begin_stage(2)
    curves.log_step(1, {"student-0": {"loss": 2.0, "tokens": 5.0}})
    curves.log_validation({"student-0": 3.0})
    curves.log_score(Cell(0, 1, 0, "mini.sql"), 50.0)
    curves.close()
    assert memory.closed and not warnings
    assert memory.points == [
        ("loss/student-0", 2.0, 11),
        ("validation_loss/student-0", 3.0, 11),
        ("score/mini.sql/student-0", 50.0, 11),
    ]


def no_key() -> Memory:
    raise SystemExit("no key")


@pytest.mark.parametrize("fails_at", [None, 0, 3])
def test_a_tracker_that_fails_is_told_once_and_dropped(fails_at: int | None) -> None:
    warnings: list[str] = []
    memory = Memory(-1 if fails_at is None else fails_at)
    writer = QueuedWriter("fake", no_key if fails_at is None else lambda: memory, warnings.append)
    for step in range(20):
        writer.add_scalar("loss", 1.0, step)
        time.sleep(0.001)
    writer.close()
    reason = "SystemExit: no key" if fails_at is None else "ConnectionError: no route to host"
    assert warnings == [f"warning: fake gets no more curves ({reason}); the run goes on, and TensorBoard has all"]
    assert len(memory.points) == (fails_at or 0)


def test_a_tracker_that_hangs_holds_up_nothing() -> None:
    blocked, warnings = threading.Event(), list[str]()
    writer = QueuedWriter("fake", lambda: Memory(blocked=blocked), warnings.append, limit=5)
    began = time.monotonic()
    for step in range(1000):
        writer.add_scalar("loss", 1.0, step)
    writer.close(timeout=0.2)
    assert time.monotonic() - began < 5
    assert len(warnings) == 1 and "takes no more points while 5 wait" in warnings[0]
    blocked.set()


def test_a_tracker_that_does_not_end_is_left() -> None:
    blocked, warnings = threading.Event(), list[str]()
    writer = QueuedWriter("fake", lambda: Memory(blocked=blocked), warnings.append)
    writer.add_scalar("loss", 1.0, 0)
    writer.close(timeout=0.2)
    assert "did not end within 0.2 s" in warnings[0]
    blocked.set()


def test_a_run_whose_tracker_fails_has_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(run: TrackedRun) -> Memory:
        raise ConnectionError("no network")

    monkeypatch.setitem(TRACKERS, "wandb", failing)  # type: ignore[arg-type]
    profile = small.cluster("in_process")
    config = small.quick("finetune")
    plain, _ = small.complete_run(config, profile, tmp_path / "plain")
    run, _ = small.complete_run(config, small.cluster("in_process", track="wandb"), tmp_path / "tracked")
    small.assert_equal(run, plain)
    assert (run.path / "logs" / "coordinator.log").read_text().count("wandb gets no more curves") == 1


def test_a_missing_package_or_name_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"--track wanbd: unknown tracker.*wandb"):
        check_tracker("wanbd")
    for found in (None, SimpleNamespace(origin=None)):  # nothing, or a folder of that name
        monkeypatch.setattr("ray_l4.monitor.tracking.find_spec", lambda name, found=found: found)
        for name, package in PACKAGES.items():
            with pytest.raises(ConfigError, match=rf"{package} is not installed.*pip install 'ray-l4\[{name}\]'"):
                tracked(ClusterConfig(), name)
    assert tracked(ClusterConfig(), None).track is None
    monkeypatch.setattr("ray_l4.monitor.tracking.find_spec", lambda name: SimpleNamespace(origin="there"))
    assert tracked(ClusterConfig(track="wandb"), "mlflow").track == "mlflow"


def test_settings_as_pairs() -> None:
    pairs = dict(flattened({"a": 1, "b": {"c": [1, 2], "d": {"e": None}}, "long": "x" * 9000}))
    assert pairs == {"a": "1", "b.c": "[1, 2]", "b.d.e": "None", "long": "x" * 500}


def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = TrackedRun("name", "project", {"seed": 0}, tmp_path)
    for _ in range(2):  # the second one goes on in the same run
        warnings: list[str] = []
        writer = QueuedWriter("wandb", lambda: WandbWriter(run), warnings.append)
        for step in (1, 2, 1):
            writer.add_scalar("loss/student-0", 1.5, step)
        writer.close()
        assert warnings == []
    assert len({path.name.rpartition("-")[2] for path in (tmp_path / "wandb").glob("offline-run-*")}) == 1


def test_wandb_without_a_key_asks_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    wandb.teardown()  # it remembers the mode of an earlier run
    warnings: list[str] = []
    writer = QueuedWriter("wandb", lambda: WandbWriter(TrackedRun("n", "p", {}, tmp_path)), warnings.append)
    writer.add_scalar("loss", 1.0, 0)
    writer.close()
    assert "wandb login" in warnings[0]


def test_mlflow_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path}/mlruns")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    run = TrackedRun("name", "project", {"seed": 0, "optim": {"lr": 1.0}}, tmp_path)
    for step in (1, 2):
        warnings: list[str] = []
        writer = QueuedWriter("mlflow", lambda: MlflowWriter(run), warnings.append)
        writer.add_scalar("score/größe|x/student-0", 1.5, step)
        writer.close()
        assert warnings == []
    found = MlflowClient().get_run(str(run.known_id("mlflow")))
    assert found.data.params == {"seed": "0", "optim.lr": "1.0"}
    history = MlflowClient().get_metric_history(found.info.run_id, "score/gr__e_x/student-0")
    assert [metric.step for metric in history] == [1, 2]
