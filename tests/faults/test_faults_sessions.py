"""Faults of the coordinator, of Ray and of the command in real runs: nothing is lost, and nothing differs.

Nothing has to be typed, but after the death of the command and when the disk is full.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from analysis.faults.fault import Fault
from analysis.faults.subjects import References
from tests.faults.faults_fixtures import Disturbed, check

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]

RUNS = {
    "coordinators": Disturbed(
        "l4",
        [
            Fault("kill", "coordinator", "start"),
            Fault("ray_kill", "coordinator", "forward"),
            Fault("slow", "coordinator", "backward"),
            Fault("stop", "coordinator", "transition"),
            Fault("disk_full", "coordinator", "checkpoint"),
        ],
    ),
    "Ray": Disturbed(
        "lamol",
        [
            Fault("kill", "raylet", "forward"),
            Fault("kill", "gcs", "replay"),
            Fault("kill", "command", "backward"),
            Fault("kill", "coordinator", "resume"),
        ],
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_after_faults_of_sessions_the_results_are_those_of_the_undisturbed_run(
    name: str, references: References, tmp_path: Path
) -> None:
    check(RUNS[name], references, tmp_path)
