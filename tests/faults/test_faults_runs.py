"""Real runs that get several faults at random moments: nothing is lost, nothing differs, nothing has to be typed."""

from __future__ import annotations

from pathlib import Path

import pytest

from analysis.faults.__main__ import one_run
from analysis.faults.fault import Fault
from analysis.faults.subjects import References

pytestmark = [pytest.mark.faults, pytest.mark.end_to_end]

RUNS: dict[str, tuple[str, list[Fault]]] = {
    "students": (
        "l4",
        [
            Fault("kill", "student", "start"),
            Fault("kill", "student", "forward"),
            Fault("stop", "student", "backward"),
            Fault("slow", "student", "exchange"),
            Fault("ray_kill", "student", "replay"),
        ],
    ),
    "evaluators": (
        "validation",
        [
            Fault("kill", "evaluator", "start"),
            Fault("kill", "student", "checkpoint"),
            Fault("ray_kill", "evaluator", "replay"),
            Fault("stop", "evaluator", "scoring"),
            Fault("slow", "evaluator", "scoring"),
        ],
    ),
    "coordinator": (
        "l4",
        [
            Fault("ray_kill", "coordinator", "start"),
            Fault("kill", "coordinator", "forward"),
            Fault("slow", "coordinator", "backward"),
            Fault("stop", "coordinator", "transition"),
            Fault("disk_full", "coordinator", "scoring"),
        ],
    ),
    "Ray": (
        "lamol",
        [
            Fault("kill", "raylet", "forward"),
            Fault("kill", "gcs", "backward"),
            Fault("kill", "raylet", "replay"),
            Fault("kill", "command", "scoring"),
        ],
    ),
    "nodes": ("l4", [Fault("node", "node", "exchange"), Fault("node", "node", "replay")]),
}
"""The subject and the faults of each run, in the order in which the run gets to their phases."""


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> References:
    return References(tmp_path_factory.mktemp("undisturbed"))


def test_at_least_twenty_faults_are_tried() -> None:
    assert sum(len(faults) for _, faults in RUNS.values()) >= 20


@pytest.mark.parametrize("name", RUNS)
def test_after_faults_the_result_is_the_undisturbed_one(name: str, references: References, tmp_path: Path) -> None:
    """The moments within the phases are drawn from a fixed seed, but depend on the machine as well."""
    subject, faults = RUNS[name]
    outcome = one_run(faults, subject, 1, tmp_path / "run", references)
    assert outcome.differences == [], outcome
    assert len(outcome.not_reached) <= 1, outcome
    needless = [record for record in outcome.records if record.commands > record.fault.allowed_commands]
    assert needless == [], "nobody should have to type a command"
    assert all(record.recovery_seconds is not None for record in outcome.records), outcome
    assert outcome.left == [], "no process outlives its command by ten seconds"
