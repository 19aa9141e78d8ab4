"""What happens when a process dies, hangs or finds no room."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import ray

from ray_l4.config.model import ModelConfig
from ray_l4.errors import ClusterError, ModelError, PeerError
from ray_l4.runtime.session import Session, start
from tests.runtime import runtime_fixtures as small


def actor_processes(title: str) -> list[int]:
    """Ray actors on this machine whose process is called ``ray::<title>...``."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                name = (entry / "cmdline").read_bytes().split(b"\0")[0].decode()
            except OSError:  # it ended while we looked
                continue
            if name.startswith(f"ray::{title}"):
                found.append(int(entry.name))
    return found


def wait_for(session: Session, phase: str) -> None:
    """Until the run is in ``phase``."""
    deadline = time.monotonic() + small.LIMIT
    while session.look().phase != phase:
        assert not session.wait(0.05), session.result()
        assert time.monotonic() < deadline


def test_a_student_that_dies_ends_the_run_with_its_name_and_what_to_do(tmp_path: Path, ray_cluster: None) -> None:
    config = small.experiment(training={"epochs": 200, "batch_size": 8})
    profile = small.cluster("object_store")
    setup, run = small.new_run(config, profile, tmp_path / "run")
    before = set(actor_processes("Student"))
    session = start(setup, profile, run)
    try:
        wait_for(session, "training")
        victim = min(set(actor_processes("Student")) - before)
        os.kill(victim, signal.SIGKILL)
        assert session.wait(60.0), "a dead student is noticed"
        with pytest.raises(PeerError, match=r"student \d, mini\.woz, step \d+: .*died"):
            session.result()
    finally:
        session.close()
    assert run.state().stages_done == 0
    deadline = time.monotonic() + 60.0
    while set(actor_processes("Student")) - before and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not set(actor_processes("Student")) - before, "the other student goes with the run"


def test_an_evaluator_that_dies_changes_nothing(tmp_path: Path, ray_cluster: None) -> None:
    config = small.experiment(training={"epochs": 12, "batch_size": 8})
    expected, _ = small.complete_run(config, small.cluster("in_process"), tmp_path / "expected")
    profile = small.cluster("object_store")
    setup, run = small.new_run(config, profile, tmp_path / "run")
    before = set(actor_processes("Evaluator"))
    session = start(setup, profile, run)
    wait_for(session, "training")
    for victim in set(actor_processes("Evaluator")) - before:
        os.kill(victim, signal.SIGKILL)
    small.finish(session)
    assert small.scores(run) == small.scores(expected)
    assert small.weights(run) == small.weights(expected)


def test_a_student_that_hangs_is_given_up_after_the_timeout(tmp_path: Path, ray_cluster: None) -> None:
    config = small.experiment(training={"epochs": 200, "batch_size": 8})
    profile = small.cluster("object_store", timeouts={"step": 5.0})
    setup, run = small.new_run(config, profile, tmp_path / "run")
    before = set(actor_processes("Student"))
    session = start(setup, profile, run)
    try:
        wait_for(session, "training")
        victim = min(set(actor_processes("Student")) - before)
        os.kill(victim, signal.SIGSTOP)
        assert session.wait(small.LIMIT), "waiting is bounded"
        with pytest.raises(PeerError, match=r"student \d, mini\.woz, step \d+: no answer within 5 s"):
            session.result()
        os.kill(victim, signal.SIGCONT)
    finally:
        session.close()


def test_what_no_node_can_place_is_said_at_once(tmp_path: Path, ray_cluster: None) -> None:
    profile = small.cluster("object_store", students={"cpus": 3})
    setup, run = small.new_run(small.experiment(), profile, tmp_path / "run")
    began = time.monotonic()
    with pytest.raises(ClusterError, match=r"2 students with 3 CPU.*There is one node with 4 CPU"):
        start(setup, profile, run)
    assert time.monotonic() - began < 20.0, "not after the timeout of a placement group"


def test_what_keeps_a_student_from_starting_is_told_as_what_it_is(tmp_path: Path, ray_cluster: None) -> None:
    """Not as the death of an actor: the kind of error, and with it the exit code, has to survive."""
    profile = small.cluster("object_store")
    setup, run = small.new_run(small.experiment(), profile, tmp_path / "run")
    broken = setup.experiment.model_copy(update={"model": ModelConfig(name=str(tmp_path / "no-model"))})
    with pytest.raises(ModelError, match=r"model\.name: cannot load .*no-model"):
        small.finish(start(replace(setup, experiment=broken), profile, run))


def test_sigterm_is_left_to_the_command(ray_cluster: None) -> None:
    """Ray would end the process where it stands, with an exit code of its own."""
    assert signal.getsignal(signal.SIGTERM) in (signal.SIG_DFL, signal.default_int_handler)


def test_a_run_gives_back_what_it_reserved(tmp_path: Path, ray_cluster: None) -> None:
    """Else the next run on the same cluster would find no room."""
    free = ray.available_resources()["CPU"]
    setup, run = small.new_run(small.experiment(), small.cluster("object_store"), tmp_path / "run")
    session = start(setup, small.cluster("object_store"), run)
    session.close()
    deadline = time.monotonic() + 30.0
    while ray.available_resources().get("CPU", 0) < free and time.monotonic() < deadline:
        time.sleep(0.2)
    assert ray.available_resources()["CPU"] == free
