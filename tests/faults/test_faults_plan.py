"""Faults as data: all kinds are there, and plans deal them out."""

from __future__ import annotations

import os
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

from analysis.faults.equality import differences, steps_on_record
from analysis.faults.fault import PHASES, VICTIMS, Fault, every_fault, plan, selected
from analysis.faults.injection import fill_disk, slow_down
from analysis.faults.processes import MARK, Processes, kind_of
from analysis.faults.table import failed, json_lines, markdown
from analysis.faults.trial import Outcome, Record

FAULTS = every_fault()


def test_every_kind_and_every_phase_occurs() -> None:
    assert {fault.what for fault in FAULTS} == VICTIMS.keys()
    assert {fault.phase for fault in FAULTS} == set(PHASES)
    assert len(FAULTS) == len(set(FAULTS)) > 60


@given(st.integers(0, 250), st.integers(0, 99), st.integers(1, 6))
def test_a_plan_deals_every_fault_before_any_comes_again(rounds: int, seed: int, per_run: int) -> None:
    runs = plan(FAULTS, rounds, seed, per_run)
    count = Counter(fault for run in runs for fault in run)
    assert count.total() == rounds
    assert max(count.values(), default=0) - min(count[fault] for fault in FAULTS) <= 1
    assert all(1 <= len(run) <= max(2, per_run) for run in runs)
    for run in runs:
        assert len({fault.on_nodes for fault in run}) == 1
        places = [PHASES.index(fault.phase) for fault in run]
        assert places == sorted(places)


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


def write_run(folder: Path, weights: bytes = b"w", loss: float = float("nan"), repeats: int = 1) -> Path:
    for place in ("checkpoints/stage-0/epoch-1/student-0", "steps", "scores"):
        (folder / place).mkdir(parents=True)
    (folder / "checkpoints/stage-0/epoch-1/student-0/model.safetensors").write_bytes(weights)
    (folder / "scores/stage-0.epoch-1.student-0.a.json").write_text('{"values": {"em": 1.0}}')
    row = {"stage": 0, "step": 3, "student": 0, "loss": loss, "wait_seconds": time.perf_counter()}
    pq.write_table(pa.Table.from_pylist([row] * repeats), folder / "steps/stage-0.epoch-1.parquet")
    return folder


def test_equal_runs_differ_in_durations_alone(tmp_path: Path) -> None:
    found, expected = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    assert differences(found, expected) == []
    assert steps_on_record(found) == 1


def test_every_difference_is_found(tmp_path: Path) -> None:
    expected = write_run(tmp_path / "expected", loss=1.0)
    assert any("model.safetensors: differs" in line for line in differences(write_run(tmp_path / "w", b"v"), expected))
    assert any("steps" in line for line in differences(write_run(tmp_path / "l", loss=2.0), expected))
    assert any("2 times" in line for line in differences(write_run(tmp_path / "r", loss=1.0, repeats=2), expected))
    lost = write_run(tmp_path / "lost", loss=1.0)
    (lost / "scores/stage-0.epoch-1.student-0.a.json").unlink()
    assert differences(lost, expected) == ["scores/stage-0.epoch-1.student-0.a.json: missing"]
    assert "no such file in the undisturbed run" in differences(expected, lost)[0]


def test_processes_are_found_by_their_mark_and_are_slowed_and_filled(tmp_path: Path) -> None:
    """A process that writes a line ten times a second cannot while its disk is full, and does again later."""
    program = (
        "import sys, time\nwhile True:\n  try:\n    f = open(sys.argv[1], 'a'); f.write('x'); f.close()\n"
        "  except OSError as e:\n    open(sys.argv[1] + '.full', 'a').close()\n  time.sleep(0.02)"
    )
    written = tmp_path / "lines"
    child = subprocess.Popen([sys.executable, "-c", program, str(written)], env=os.environ | {MARK: "a test"})
    try:
        processes = Processes("a test")
        deadline = time.monotonic() + 30.0
        while not (written.exists() and child.pid in processes.alive()) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert list(processes.alive()) == [child.pid]
        assert not Processes("another").alive()
        assert slow_down(child.pid, lambda seconds: time.sleep(seconds / 10))
        assert fill_disk(child.pid, time.sleep)
        assert (tmp_path / "lines.full").exists()
        size = written.stat().st_size
        while written.stat().st_size == size and time.monotonic() < deadline:
            time.sleep(0.05)
        assert written.stat().st_size > size
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert not processes.alive()
    assert not slow_down(child.pid, time.sleep) and not fill_disk(child.pid, time.sleep)


def test_the_table_counts_what_was_typed_and_what_is_lost() -> None:
    records = [
        Record(Fault("kill", "student", "forward"), 2.0),
        Record(Fault("kill", "student", "replay"), 6.0, commands=1, exit_codes=[7]),
        Record(Fault("kill", "command", "forward"), 9.0, commands=1, exit_codes=[-9]),
    ]
    outcome = Outcome("l4", records, [Fault("stop", "gcs", "start")], [], ["ray::IDLE"], 12, 40.0)
    text = markdown([outcome])
    row = next(line for line in text.splitlines() if "kill student" in line)
    assert [cell.strip() for cell in row.strip("|").split("|")][2:] == ["2", "1", "4.0", "6.0", "1"]
    assert "beyond one for each killed command: 1." in text and "Steps done again: 12" in text
    assert "that left processes behind: 1" in text and "did not come: 1" in text
    assert len(list(json_lines(outcome))) == 4
    assert not failed([outcome])
    assert failed([Outcome("l4", records, [], ["scores/a.json: missing"], [], 0, 1.0)])
