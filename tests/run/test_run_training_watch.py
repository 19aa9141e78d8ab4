"""Training that goes wrong is warned of once, also by a run that is resumed, and the report repeats the warning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ray_l4.errors import RunDirectoryError
from ray_l4.methods import Topology, complete, isolated, taught
from ray_l4.report.finished_run import FinishedRun
from ray_l4.report.html.page import render
from ray_l4.report.markdown import run_report
from ray_l4.run.training_watch import taught_by_peers
from ray_l4.store.warnings import TrainingWarning, read_warnings, write_warnings
from tests.run import run_fixtures as small

MODEL = {"from_scratch": {"layers": 1, "width": 32, "heads": 2, "positions": 96, "vocabulary": 400, "dropout": 0.0}}
LONG: dict[str, Any] = {
    "model": MODEL,
    "stream": [{"name": "mini.woz", "train": 120, "test": 4}],
    "training": {"epochs": 4, "batch_size": 4},
    "optim": {"variant": "torch", "lr": 1e-2},
    "checkpoint": {"every_steps": 20},
}
PROFILE = small.cluster("in_process")
CASES: dict[str, tuple[dict[str, Any], set[tuple[str, int]]]] = {
    "healthy": ({"peers": {"init": "own"}}, set()),
    "a hundred times the learning rate": (
        {"peers": {"init": "own", "each": [{}, {"lr": 1.0}]}},
        {("divergence", 1)},
    ),
    "peers that are equal": (
        {"distillation": {"weight": 10.0, "batches": "shared"}},
        {("collapse", 0), ("collapse", 1)},
    ),
    "equal peers that do not teach": ({"distillation": {"weight": 0.0}}, set()),
    "one student, who learns from nobody": ({"method": "finetune"}, set()),
}


def warned(lines: list[str]) -> list[str]:
    return [line for line in lines if "diverges:" in line or "learns nothing from its peers any more" in line]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_run_warns_of_what_goes_wrong_and_of_nothing_else(case: str, tmp_path: Path) -> None:
    changes, expected = CASES[case]
    run, _ = small.complete_run(small.experiment(**LONG | changes), PROFILE, tmp_path / "run")
    found = read_warnings(run)
    assert {(own.kind, own.student) for own in found} == expected
    assert len(found) == len(expected)
    log = warned(run.log("coordinator").read_text(encoding="utf-8").splitlines())
    assert len(log) == len(expected)
    finished = FinishedRun.open(run.path)
    for own in found:
        assert f"student {own.student} (stage 0, mini.woz, step {own.step})" in own.message
        assert own.message in run_report(finished)
        assert "learns nothing from its peers" in render([finished]) or own.kind != "collapse"


@pytest.mark.slow
def test_a_run_that_is_stopped_and_resumed_warns_once_and_at_the_same_step(tmp_path: Path) -> None:
    config = small.experiment(**LONG, distillation={"weight": 10.0, "batches": "shared"})
    expected, _ = small.complete_run(config, PROFILE, tmp_path / "expected")
    setup, run = small.new_run(config, PROFILE, tmp_path / "run")
    small.run_with_stops(setup, PROFILE, run, 33)
    assert read_warnings(run) == read_warnings(expected)
    log = run.log("coordinator").read_text(encoding="utf-8").splitlines()
    assert len(warned(log)) == len(read_warnings(expected)) == 2


def test_only_students_of_students_can_collapse() -> None:
    assert list(taught_by_peers(complete(3))) == [0, 1, 2]
    assert not taught_by_peers(isolated(3))
    assert not taught_by_peers(taught(2))
    assert list(taught_by_peers(Topology(2, frozenset({(0, 1)})))) == [1]


def test_damaged_warnings_are_named(tmp_path: Path) -> None:
    _, run = small.new_run(small.experiment(), PROFILE, tmp_path / "run")
    write_warnings(run, [TrainingWarning("collapse", 0, 1, 50, "text")])
    assert read_warnings(run) == [TrainingWarning("collapse", 0, 1, 50, "text")]
    (run.path / "warnings.json").write_text('{"warnings": [{"kind": 3}]}', encoding="utf-8")
    with pytest.raises(RunDirectoryError, match=r"warnings\.json"):
        read_warnings(run)
