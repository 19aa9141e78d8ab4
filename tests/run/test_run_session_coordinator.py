"""A coordinator that dies or hangs is replaced, and the run ends as if nothing had happened."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import time
from pathlib import Path

import pytest

from ray_l4.cluster.reservation import Reservation
from ray_l4.errors import ClusterError
from ray_l4.run.coordinator import Coordinator
from ray_l4.run.coordinator_process import CoordinatorActor
from ray_l4.run.restart_budget import progress_on_disk
from ray_l4.run.session import start
from ray_l4.store.run_directory import RunDirectory
from tests.run import run_fixtures as small
from tests.run.test_run_faults import actor_processes, outcome, strike

DEATHS = {
    "dies": (signal.SIGKILL, r"the coordinator died, last seen in task \d of 2"),
    "hangs": (signal.SIGSTOP, r"the coordinator has not answered for \d+ s \(timeouts\.control\), last seen in"),
}


@pytest.mark.parametrize("how", DEATHS)
def test_a_coordinator_is_replaced_and_the_result_is_the_undisturbed_one(
    how: str, tmp_path: Path, ray_cluster: None
) -> None:
    number, line = DEATHS[how]
    config = small.long_enough()
    expected, _ = small.complete_run(config, small.cluster("in_process"), tmp_path / "expected")
    profile = small.cluster("object_store", timeouts={"control": 4.0}, evaluators={"count": 1})
    setup, run = small.new_run(config, profile, tmp_path / "run")
    students = set(actor_processes("Student"))
    session = start(setup, profile, run)
    victim = strike(session, "training", "CoordinatorActor", set(), number)
    summary, events = outcome(session)
    small.assert_equal(run, expected)
    assert summary["lost_students"] == {}
    assert re.search(line, events), events
    assert "another one goes on" in events and events.count("another one goes on") == 1
    assert victim not in actor_processes("CoordinatorActor"), "it could write again"
    deadline = time.monotonic() + 30.0
    while set(actor_processes("Student")) - students and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not set(actor_processes("Student")) - students, "those of the old one are gone too"


def test_a_coordinator_that_dies_every_time_ends_the_run_with_its_place(tmp_path: Path, ray_cluster: None) -> None:
    profile = small.cluster("object_store", restarts={"most": 1, "backoff": 0.0})
    setup, run = small.new_run(small.long_enough(), profile, tmp_path / "run")
    session = start(setup, profile, run)
    try:
        ended = False
        while not ended:
            for victim in actor_processes("CoordinatorActor"):
                os.kill(victim, signal.SIGKILL)
            ended = session.wait(1.0)
        with pytest.raises(ClusterError, match=r"coordinator: it died.*restarts\.most.*ray-l4 resume") as caught:
            session.result()
    finally:
        session.close()
    assert caught.value.exit_code == 7
    assert run.state().stages_done == 0


def test_what_counts_as_progress(tmp_path: Path) -> None:
    before = progress_on_disk(tmp_path)
    for name in ("logs/coordinator.log", "timeline.parquet", "tensorboard/events"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("more")
    assert progress_on_disk(tmp_path) == before
    for name in ("scores/stage-0.x.json", "checkpoints/stage-0/epoch-1/student-0/model", "teachers/scores/a.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("more")
        assert progress_on_disk(tmp_path) != before
        before = progress_on_disk(tmp_path)


def test_the_folder_is_free_for_another_coordinator_once_the_run_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not only once its process is gone: where locks are not supported, a file would stay, and nobody else resume."""
    setup, run = small.new_run(small.experiment(), small.cluster("object_store"), tmp_path / "run")
    actor = CoordinatorActor(setup, small.cluster("object_store"), run.path, Reservation(None, 2, 1))  # type: ignore[arg-type]
    monkeypatch.setattr(Coordinator, "run", lambda self: locked_now(run))
    assert actor.run() is True
    assert locked_now(run) is False


def locked_now(run: RunDirectory) -> bool:
    with (run.path / ".lock.writer").open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
