"""The fuzzer: what it counts as a failure, that its inputs follow from a seed, and a few inputs of every kind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from analysis.fuzz import workers
from analysis.fuzz.calls import Outcome, call
from analysis.fuzz.inputs import Input
from analysis.fuzz.kinds import KINDS
from analysis.fuzz.workers import HANG, SLOW, Found, Job, each_input, run_job


def drawn(kind: str, count: int, seed: int, material: Path) -> list[Input]:
    """Return the inputs of a job."""
    found: list[Input] = []
    each_input(Job(kind, count, seed), material, found.append)
    return found


@pytest.mark.parametrize("kind", ["experiment", "set", "topology", "data"])
def test_the_inputs_follow_from_the_seed(kind: str, tmp_path: Path) -> None:
    first = drawn(kind, 15, 4, tmp_path)
    assert len(first) == 15
    assert drawn(kind, 15, 4, tmp_path) == first != drawn(kind, 15, 5, tmp_path)


def test_an_exception_that_leaves_the_command_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*given: object) -> None:
        raise KeyError("properties")

    listing = Input(("methods",))
    assert call(listing, tmp_path).code == 0
    monkeypatch.setattr("ray_l4.cli.main.explain", broken)
    outcome = call(Input(("table", "no-such-run")), tmp_path)
    assert outcome.code is None and "KeyError" in outcome.error
    assert outcome.defect.startswith("KeyError at cli/")


def test_a_refusal_has_its_exit_code_and_its_message(tmp_path: Path) -> None:
    outcome = call(Input(("table", "no-such-run")), tmp_path)
    assert outcome.code not in (None, 0) and "no-such-run" in outcome.error and not outcome.defect


def test_an_exit_code_that_the_kind_does_not_allow_is_a_failure() -> None:
    found = Found()
    found.add(Input(("table",)), Outcome(3, "no data"), frozenset({0, 3}))
    assert (found.inputs, found.codes, found.numbers) == (1, {"3": 1}, {})
    found.add(Input(("table",)), Outcome(3, "no data"), frozenset({0}))
    assert (found.inputs, found.codes, found.numbers) == (2, {"3": 2}, {"exit code 3 of table: no data": 1})


def test_an_input_that_hangs_or_ends_the_process_is_counted_once_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = tmp_path / "calls"

    def calls(given: Input, folder: Path) -> Outcome:
        with done.open("a") as file:
            file.write("x")
        match done.stat().st_size:
            case 3:
                time.sleep(60)
            case 5:
                os._exit(9)
        return Outcome(0, "")

    monkeypatch.setattr(workers, "call", calls)
    monkeypatch.setattr(workers, "PATIENCE", 0.5)
    found = run_job(Job("topology", 8, 1), tmp_path)
    assert found.numbers == {HANG: 1, "ended the process with 9": 1}
    assert found.inputs == done.stat().st_size == 8 and found.codes["hang"] == 1


def test_an_input_that_takes_long_and_ends_is_slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def calls(given: Input, folder: Path) -> Outcome:
        time.sleep(0.2)
        return Outcome(0, "")

    monkeypatch.setattr(workers, "call", calls)
    monkeypatch.setattr(workers, "LIMIT", 0.1)
    found = run_job(Job("topology", 1, 1), tmp_path)
    assert found.numbers == {SLOW: 1} and found.codes == {"0": 1, "slow": 1}


@pytest.mark.slow
@pytest.mark.processes
def test_damaged_input_of_every_kind_ends_in_a_message(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "analysis.fuzz", "--inputs", "250", "--seed", "11", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    shown = "\n".join(path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.txt"))
    assert done.returncode == 0, done.stdout + done.stderr + shown
    lines = done.stdout.splitlines()
    assert all(any(line.startswith(f"| {kind} ") for line in lines) for kind in KINDS)
