"""Faults as data: all kinds are there, and plans deal them out."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.faults.equality import differences
from analysis.faults.fault import PHASES, VICTIMS, Deck, Fault, every_fault, selected
from analysis.faults.injection import fill_disk, slow_down
from analysis.faults.outcome import Outcome, Record
from analysis.faults.processes import MARK, Processes, kind_of
from analysis.faults.recovery import Recovery, Results
from analysis.faults.steps import dealt_out, repeated_steps
from analysis.faults.subjects import SUBJECTS, stages_of, write_files
from analysis.faults.table import json_lines, markdown
from ray_l4.config.loading import load_cluster, load_experiment
from ray_l4.store.sealed import write_record
from ray_l4.workers.log import DEBUG_VARIABLE
from tests.faults.test_faults_sessions import RUNS as RUNS_OF_SESSIONS
from tests.faults.test_faults_workers import RUNS as RUNS_OF_WORKERS
from tests.run.run_fixtures import cluster, complete_run, quick

FAULTS = every_fault()


def test_every_kind_and_every_phase_occurs() -> None:
    assert {fault.what for fault in FAULTS} == VICTIMS.keys()
    assert {fault.phase for fault in FAULTS} == set(PHASES)
    assert len(FAULTS) == len(set(FAULTS)) > 60


@given(st.integers(0, 99), st.integers(1, 8))
def test_every_fault_is_dealt_before_any_comes_again(seed: int, per_run: int) -> None:
    deck, count = Deck(FAULTS, seed), Counter[Fault]()
    while count.total() < 2 * len(FAULTS):
        dealt = deck.deal(per_run)
        assert 1 <= len(dealt) <= per_run
        assert len({fault.on_nodes for fault in dealt}) == 1
        phases = Counter(fault.phase for fault in dealt)
        assert phases["start"] <= 1 and phases["resume"] <= 1, "they come once in a run"
        count.update(dealt)
        assert max(count.values()) - min(count[fault] for fault in FAULTS) <= 1
    assert set(count.values()) == {2}


def test_a_fault_whose_moment_does_not_come_is_tried_again_and_given_up_at_last() -> None:
    fault = Fault("kill", "student", "replay")
    deck = Deck([fault], 1)
    for _ in range(2):
        assert deck.put_back(deck.deal(4)) == []
    assert deck.put_back(deck.deal(4)) == [fault]
    assert deck.deal(4) == [fault], "the next round tries it again"


@pytest.mark.parametrize(
    ("only", "condition"),
    [
        (None, lambda fault: True),
        ("kill", lambda fault: fault.what == "kill"),
        (",gcs", lambda fault: fault.whom == "gcs"),
        ("*,student,replay", lambda fault: (fault.whom, fault.phase) == ("student", "replay")),
        ("kill,nobody,", lambda fault: False),
    ],
)
def test_a_selection(only: str | None, condition: object) -> None:
    assert selected(FAULTS, only) == [fault for fault in FAULTS if condition(fault)]  # type: ignore[operator]


@pytest.mark.parametrize("subject", SUBJECTS)
@pytest.mark.parametrize("address", [None, "127.0.0.1:6379"])
def test_the_files_of_every_subject_are_valid(subject: str, address: str | None, tmp_path: Path) -> None:
    experiment, profile = write_files(subject, tmp_path, address)
    assert len(load_experiment(experiment).stream) == stages_of(subject) == 3
    assert load_cluster(str(profile)).ray.address == address


@pytest.mark.parametrize(
    ("title", "kind"),
    [
        ("ray::Student", "student"),
        ("ray::Student.forward", "student"),
        ("ray::StudentOfAnother", "other"),
        ("ray::CoordinatorActor.run", "coordinator"),
        ("/site-packages/ray/core/src/ray/raylet/raylet", "raylet"),
        ("/site-packages/ray/core/src/ray/gcs/gcs_server", "gcs"),
        ("/usr/bin/python", "other"),
    ],
)
def test_what_a_process_is(title: str, kind: str) -> None:
    assert kind_of(title) == kind


def write_run(
    folder: Path, weights: bytes = b"w", loss: float = float("nan"), repeats: int = 1, epoch: int = 1
) -> Path:
    for place in ("checkpoints/stage-0/epoch-1/student-0", "steps", "scores"):
        (folder / place).mkdir(parents=True)
    (folder / "checkpoints/stage-0/epoch-1/student-0/model.safetensors").write_bytes(weights)
    (folder / "scores/stage-0.epoch-1.student-0.a.json").write_text('{"values": {"em": 1.0}}')
    summary = {"validation": {"0": epoch}, "final": loss, "wall_seconds": time.perf_counter(), "restarts": id(folder)}
    write_record(folder / "summary.json", summary)
    row = {"stage": 0, "step": 3, "student": 0, "loss": loss, "wait_seconds": time.perf_counter()}
    pq.write_table(pa.Table.from_pylist([row] * repeats), folder / "steps/stage-0.epoch-1.parquet")
    return folder


def test_equal_runs_differ_in_durations_alone(tmp_path: Path) -> None:
    found, expected = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    assert differences(found, expected) == []
    (found / "checkpoints/stage-0/epoch-1/.student-0.7.part").mkdir()
    (found / "checkpoints/stage-0/epoch-1/.student-0.7.part/model.safetensors").touch()
    assert differences(found, expected) == [], "what a killed process had begun to write is no result"


def test_every_difference_is_found(tmp_path: Path) -> None:
    expected = write_run(tmp_path / "expected", loss=1.0)
    assert any("model.safetensors: differs" in line for line in differences(write_run(tmp_path / "w", b"v"), expected))
    assert any("steps" in line for line in differences(write_run(tmp_path / "l", loss=2.0), expected))
    assert any("2 times" in line for line in differences(write_run(tmp_path / "r", loss=1.0, repeats=2), expected))
    chosen = write_run(tmp_path / "chosen", loss=1.0, epoch=2)
    assert differences(chosen, expected) == ["summary.json: differs"]
    lost = write_run(tmp_path / "lost", loss=1.0)
    (lost / "scores/stage-0.epoch-1.student-0.a.json").unlink()
    assert differences(lost, expected) == ["scores/stage-0.epoch-1.student-0.a.json: missing"]
    assert "no such file in the undisturbed run" in differences(expected, lost)[0]


def test_processes_are_found_by_their_mark_and_are_slowed_and_filled(tmp_path: Path) -> None:
    """A process that writes all the time goes on after it was slow, and cannot write once its disk is full."""
    program = (
        "import sys, time\nwhile True:\n  try:\n    f = open(sys.argv[1], 'a'); f.write('x'); f.close()\n"
        "  except OSError as e:\n    open(sys.argv[1] + '.full', 'a').close()\n  time.sleep(0.02)"
    )
    written, full = tmp_path / "lines", tmp_path / "lines.full"
    child = subprocess.Popen([sys.executable, "-c", program, str(written)], env=os.environ | {MARK: "a test"})
    try:
        processes = Processes("a test")
        deadline = time.monotonic() + 30.0
        while not (written.exists() and child.pid in processes.alive()) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert list(processes.alive()) == [child.pid]
        assert not Processes("another").alive()
        assert slow_down(child.pid, lambda seconds: time.sleep(seconds / 10))
        size = written.stat().st_size
        while written.stat().st_size == size and time.monotonic() < deadline:
            time.sleep(0.05)
        assert written.stat().st_size > size, "it goes on"
        assert fill_disk(child.pid)
        while not full.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        size = written.stat().st_size
        time.sleep(0.2)
        assert full.exists() and written.stat().st_size == size
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert not processes.alive()
    assert not slow_down(child.pid, time.sleep) and not fill_disk(child.pid)


def test_the_table_counts_what_was_typed_and_what_is_lost() -> None:
    records = [
        Record(Fault("kill", "student", "forward"), 2.0, "states/x", steps_again=3),
        Record(Fault("kill", "student", "replay"), 6.0, "scores/x", commands=1, exit_codes=[7]),
        Record(Fault("kill", "command", "forward"), 9.0, "states/x", commands=1, exit_codes=[-9]),
        Record(Fault("disk_full", "coordinator", "scoring"), 9.0, "scores/x", commands=1, exit_codes=[5]),
        Record(Fault("kill", "command", "resume"), commands=1, exit_codes=[-9]),
    ]
    outcome = Outcome("l4", records, [], ["scores/a.json: missing"], ["ray::IDLE"], 40.0)
    text = markdown([outcome], [Fault("stop", "gcs", "start")])
    row = next(line for line in text.splitlines() if "kill student" in line)
    assert [cell.strip() for cell in row.strip("|").split("|")][2:] == ["2", "4.0", "6.0", "3", "1"]
    by_itself = next(line for line in text.splitlines() if "need no command" in line)
    assert [cell.strip() for cell in by_itself.strip("|").split("|")][2:] == ["2", "4.0", "6.0", "3", "1"]
    for total in ("commands typed that should not be needed: 1", "steps done again: 3", "results lost or different: 1"):
        assert total in text
    for total in ("processes left behind: 1", "moment did not come: 1", "another before the recovery: 1"):
        assert total in text
    assert "run 0: scores/a.json: missing" in text
    assert len(list(json_lines(outcome))) == 6
    assert len(outcome.complaints) == 3, "a needless command, a lost result and a process"
    assert not Outcome("l4", [records[0], *records[2:]], [], [], [], 40.0).complaints


def test_steps_done_again_are_counted_from_the_log(tmp_path: Path) -> None:
    """A student that goes back from step 3 to step 1 does two steps again; the other one does none."""
    log = tmp_path / "logs" / "coordinator.log"
    log.parent.mkdir()
    steps = [(1, 0), (1, 1), (2, 0), (3, 0), (2, 0), (3, 0), (4, 0)]
    lines = [
        f"2026-01-02 03:04:0{second},500 DEBUG [7] figures of stage 1, step {step}, student {student}"
        for second, (step, student) in enumerate(steps)
    ]
    log.write_text("\n".join(["a traceback", *lines, "2026-01-02 03:04:09,000 INFO [7] stages done: 1 of 2"]))
    times = repeated_steps(tmp_path)
    assert [time.strftime("%S", time.localtime(when)) for when in times] == ["04", "05"]
    assert dealt_out(times, [times[0] - 9.0, times[1] - 0.1]) == [1, 1]
    assert dealt_out([], [1.0]) == [0]


def test_the_coordinator_logs_the_steps_that_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DEBUG_VARIABLE, "1")
    run = tmp_path / "run"
    complete_run(quick("finetune"), cluster("in_process"), run)
    log = run / "logs" / "coordinator.log"
    steps = sum(pq.read_metadata(path).num_rows for path in run.glob("steps/*.parquet"))
    assert log.read_text().count("DEBUG") == steps > 0
    assert repeated_steps(run) == []
    log.write_text(log.read_text() * 2)
    assert len(repeated_steps(run)) == steps


def test_a_new_result_counts_once_there_is_a_process_in_the_place_of_the_lost_one(tmp_path: Path) -> None:
    processes, results = Processes("nobody's"), Results(tmp_path)
    processes.titles |= {1: "ray::Student", 2: "ray::IDLE"}

    def write(name: str) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
        time.sleep(0.06)

    write("states/stage-0.steps-10/position.json")
    recovery = Recovery(Fault("kill", "student", "forward"), processes, results, 2)
    write("states/stage-0.steps-20/position.json")
    assert not recovery.progress(), "it was under way"
    processes.titles[2] = "ray::Student.forward"
    assert not recovery.progress()
    shutil.rmtree(tmp_path / "states/stage-0.steps-10")
    write("states/stage-0.steps-10/position.json")
    assert not recovery.progress(), "it was there before"
    write("scores/a.json")
    assert not recovery.progress(), "it is not the work of students"
    write("checkpoints/stage-0/epoch-1/.student-0.7.part/model.safetensors")
    assert not recovery.progress(), "it is not whole"
    write("states/stage-0.steps-30/position.json")
    assert recovery.progress() == "states/stage-0.steps-30/position.json"
    (tmp_path / "state.json").write_text('{"stages_done": 2}')
    late = Recovery(Fault("kill", "student", "scoring"), processes, results, 2)
    write("scores/b.json")
    assert late.progress() == "scores/b.json", "no student is needed any more"


def test_the_runs_of_the_tests_get_at_least_twenty_faults_of_every_kind() -> None:
    faults = [fault for run in (*RUNS_OF_WORKERS.values(), *RUNS_OF_SESSIONS.values()) for fault in run.faults]
    assert len(faults) >= 20
    assert {fault.what for fault in faults} == VICTIMS.keys()
    assert {fault.phase for fault in faults} == set(PHASES)
    assert set(faults) <= set(FAULTS)
