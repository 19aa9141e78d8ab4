"""Faults of students, evaluators and nodes in real runs: nothing is lost, nothing differs, nothing has to be typed."""

from __future__ import annotations

from pathlib import Path

import pytest

from analysis.faults.fault import Fault
from analysis.faults.subjects import References
from tests.faults.faults_fixtures import Disturbed, check

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]

RUNS = {
    "students": Disturbed(
        "l4",
        [
            Fault("kill", "student", "start"),
            Fault("kill", "student", "forward"),
            Fault("stop", "student", "exchange"),
            Fault("slow", "student", "backward"),
            Fault("ray_kill", "student", "replay"),
        ],
    ),
    "evaluators": Disturbed(
        "lamol",
        [
            Fault("kill", "evaluator", "start"),
            Fault("kill", "student", "checkpoint"),
            Fault("kill", "evaluator", "replay"),
            Fault("stop", "evaluator", "scoring"),
            Fault("slow", "evaluator", "scoring"),
        ],
    ),
    "nodes": Disturbed(
        "l4",
        [
            Fault("node", "node", "exchange"),
            Fault("node", "node", "replay"),
        ],
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_after_faults_of_workers_the_results_are_those_of_the_undisturbed_run(
    name: str, references: References, tmp_path: Path
) -> None:
    check(RUNS[name], references, tmp_path)
