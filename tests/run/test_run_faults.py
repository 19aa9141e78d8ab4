"""What happens when a process dies, hangs or finds no room."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray

from ray_l4.cluster.placement import check_room
from ray_l4.config.model import ModelConfig
from ray_l4.errors import ClusterError, ModelError, PeerError
from ray_l4.report.finished_run import FinishedRun
from ray_l4.report.markdown import run_report
from ray_l4.run.session import Session, start
from tests.run import run_fixtures as small


def actor_processes(title: str) -> list[int]:
    """Actors of this session whose process is called ``ray::<title>...``; other Rays may run on this machine."""
    session = ray._private.worker.global_worker.node.get_session_dir_path()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                name = (entry / "cmdline").read_bytes().split(b"\0")[0].decode()
                parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
                ours = session in (Path("/proc") / parent / "cmdline").read_text()
            except OSError:  # it ended while we looked
                continue
            if ours and name.startswith(f"ray::{title}"):
                found.append(int(entry.name))
    return found


def wait_for(session: Session, phase: str) -> None:
    """Until the run is in ``phase``."""
    deadline = time.monotonic() + small.LIMIT
    while session.snapshot().phase != phase:
        assert not session.wait(0.05), session.result()
        assert time.monotonic() < deadline


def outcome(session: Session) -> tuple[dict[str, Any], str]:
    """The summary of a run that ends well, and its lines for people."""
    assert session.wait(small.LIMIT)
    events = "\n".join(session.snapshot().events)
    return small.finish(session), events


def strike(
    session: Session, phase: str, title: str, before: set[int], number: int, which: Callable[[set[int]], int] = min
) -> int:
    """Send a signal to a new process of that title once the run is in ``phase`` and some steps into it."""
    wait_for(session, phase)
    deadline = time.monotonic() + small.LIMIT
    while session.snapshot().step < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    victim = which(set(actor_processes(title)) - before)
    os.kill(victim, number)
    return victim


@pytest.mark.parametrize(("transport", "which"), [("object_store", min), ("collective", max)])
def test_a_student_and_an_evaluator_that_die_are_replaced_and_the_result_is_the_undisturbed_one(
    transport: str, which: Callable[[set[int]], int], tmp_path: Path, ray_cluster: None
) -> None:
    """The survivor's own error, that its partner is gone, is the first that is seen if the later one dies."""
    config = small.long_enough(evaluation={"when": "epoch", "limit": 2})
    expected, _ = small.complete_run(config, small.cluster("in_process"), tmp_path / "expected")
    profile = small.cluster(transport)
    setup, run = small.new_run(config, profile, tmp_path / "run")
    before, evaluators_before = set(actor_processes("Student")), set(actor_processes("Evaluator"))
    session = start(setup, profile, run)
    wait_for(session, "training")
    for victim in set(actor_processes("Evaluator")) - evaluators_before:
        os.kill(victim, signal.SIGKILL)
    strike(session, "training", "Student", before, signal.SIGKILL, which)
    summary, events = outcome(session)
    small.assert_equal(run, expected)
    assert summary["restarts"] == 1 and summary["lost_students"] == {}
    assert "is lost and replaced" in events


def test_without_a_student_the_others_go_on_and_the_report_says_so(tmp_path: Path, ray_cluster: None) -> None:
    config = small.long_enough(peers={"count": 3, "on_peer_loss": "continue"})
    profile = small.cluster("object_store")
    setup, run = small.new_run(config, profile, tmp_path / "run")
    before = set(actor_processes("Student"))
    session = start(setup, profile, run)
    strike(session, "training", "Student", before, signal.SIGKILL)
    summary = small.finish(session)
    ((lost, how),) = summary["lost_students"].items()
    assert "died" in how
    left = {"0", "1", "2"} - {lost}
    assert summary["restarts"] == 0, "nothing was learned again"
    for student in left:
        assert None not in summary["score_matrix"][student][-1]
    assert summary["score_matrix"][lost][-1] == [None, None]
    steps = [row for row in run.step_figures() if row["stage"] == 1]
    assert {str(row["student"]) for row in steps} == left
    assert all(row["kd_qa"] > 0 for row in steps if row["step"] > 1), "those that are left still teach each other"
    received = {row["bytes_received"] / row["bytes_sent"] for row in steps}
    assert received == {1.0}, "one teacher each"
    report = run_report(FinishedRun.open(run.path))
    assert f"Student {lost} was lost" in report


def test_a_lost_student_needs_no_room_after_a_resume(tmp_path: Path, ray_cluster: None) -> None:
    """Two students with two CPUs each fit on the four there are; three, of which the run began with, would not."""
    config = small.experiment(peers={"count": 3, "on_peer_loss": "continue"})
    setup, run = small.stopped_run(config, tmp_path / "run", "learning mini.sql")
    run.save_state(run.state().model_copy(update={"lost_students": {1: "its node was gone"}}))
    profile = small.cluster("object_store", students={"cpus": 2})
    with pytest.raises(ClusterError, match="3 students with 2 CPU"):
        check_room(3, profile, [{"CPU": 4.0}])
    summary = small.finish(start(setup, profile, run))
    assert summary["lost_students"] == {"1": "its node was gone"}
    last = {student: rows[-1] for student, rows in summary["score_matrix"].items()}
    assert last["1"] == [None, None] and None not in last["0"] + last["2"]


def test_a_student_that_dies_every_time_ends_the_run(tmp_path: Path, ray_cluster: None) -> None:
    """It is no use to try for ever: the peer, the stage and the step are named."""
    config = small.experiment(training={"epochs": 200, "batch_size": 8})
    profile = small.cluster("object_store")
    setup, run = small.new_run(config, profile, tmp_path / "run")
    before = set(actor_processes("Student"))
    session = start(setup, profile, run)
    try:
        wait_for(session, "training")
        deadline = time.monotonic() + small.LIMIT
        while not session.wait(0.5):
            assert time.monotonic() < deadline
            for victim in sorted(set(actor_processes("Student")) - before)[:1]:
                with suppress(ProcessLookupError):
                    os.kill(victim, signal.SIGKILL)
        with pytest.raises(PeerError, match=r"student \d.*died"):
            session.result()
    finally:
        session.close()
    assert run.state().stages_done == 0
    deadline = time.monotonic() + 60.0
    while set(actor_processes("Student")) - before and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not set(actor_processes("Student")) - before, "all students go with the run"


def test_a_student_that_hangs_is_noticed_by_its_pulse_and_alone_replaced_but_not_one_that_is_slow(
    tmp_path: Path, ray_cluster: None
) -> None:
    """Long before the limit of a step, and without its partner, which waits for its predictions."""
    config = small.long_enough()
    expected, _ = small.complete_run(config, small.cluster("in_process"), tmp_path / "expected")
    profile = small.cluster("object_store", timeouts={"control": 6.0, "step": small.LIMIT})
    setup, run = small.new_run(config, profile, tmp_path / "run")
    before = set(actor_processes("Student"))
    session = start(setup, profile, run)
    victim = strike(session, "training", "Student", before, signal.SIGSTOP)
    time.sleep(2.0)
    os.kill(victim, signal.SIGCONT)
    step = session.snapshot().step
    while session.snapshot().step < step + 5:
        time.sleep(0.05)
    (partner,) = set(actor_processes("Student")) - before - {victim}
    os.kill(victim, signal.SIGSTOP)
    began = time.monotonic()
    while len(set(actor_processes("Student")) - before - {victim, partner}) < 1:
        assert not session.wait(0.1) and time.monotonic() - began < 60.0
    assert partner in actor_processes("Student"), "it waited for the other and is well"
    summary, events = outcome(session)
    small.assert_equal(run, expected)
    assert summary["restarts"] == 1, "it was slow before, and not replaced for that"
    (line,) = [line for line in events.splitlines() if "is lost and replaced" in line]
    assert re.search(r"student [01]: no sign of life for 6 s \(timeouts\.control\); last span: ", line), line
    assert re.search(r"last span: [a-z ]+ \(student [01], stage 0, step \d+\), \d+ s ago; awaited: ", line), line
    assert re.search(r"awaited: .*student [01], mini\.woz, step \d+, figures", line), line
    assert victim not in actor_processes("Student"), "it is ended, not only left alone"


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
    with pytest.raises(ModelError, match=r"model\.name: there is no folder .*no-model"):
        small.finish(start(replace(setup, experiment=broken), profile, run))


def test_sigterm_is_left_to_the_command(ray_cluster: None) -> None:
    """Ray would end the process where it stands, with an exit code of its own."""
    assert signal.getsignal(signal.SIGTERM) in (signal.SIG_DFL, signal.default_int_handler)


def test_a_run_gives_back_what_it_reserved(tmp_path: Path, ray_cluster: None) -> None:
    """Else the next run on the same cluster would find no room."""
    everything = ray.cluster_resources()["CPU"]
    setup, run = small.new_run(small.experiment(), small.cluster("object_store"), tmp_path / "run")
    session = start(setup, small.cluster("object_store"), run)
    session.close()
    deadline = time.monotonic() + 30.0
    while ray.available_resources().get("CPU", 0) < everything and time.monotonic() < deadline:
        time.sleep(0.2)
    assert ray.available_resources()["CPU"] == everything
