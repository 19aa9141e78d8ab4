"""A run that gets faults at random moments of given phases, and what has to hold afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import FileLock

from analysis.faults.__main__ import one_run
from analysis.faults.fault import Fault
from analysis.faults.subjects import References
from tests.run.run_fixtures import no_shared_ray

MOST_RUNS = 3
"""Runs in which a fault may be tried."""


@dataclass(frozen=True)
class Disturbed:
    """A run by its subject and its faults."""

    subject: str
    faults: Sequence[Fault]


def references_for(factory: pytest.TempPathFactory, worker_id: str) -> References:
    """Return the undisturbed runs, which all test processes share."""
    base = factory.getbasetemp()
    return References((base if worker_id == "master" else base.parent) / "undisturbed")


def check(run: Disturbed, references: References, folder: Path) -> None:
    """Carry out a run, and others with the faults that it missed, until each of its faults was injected.

    Moments are drawn from a fixed seed, but depend on the machine as well: on a busy one, a short phase may be over
    before its fault.
    """
    with FileLock(f"{references.folder}.lock"):  # another test process may need the same one
        references.of(run.subject)
    missed = list(run.faults)
    for attempt in range(MOST_RUNS):
        with no_shared_ray():
            outcome = one_run(missed, run.subject, 1 + attempt, folder / f"run-{attempt}", references)
        assert outcome.complaints == [], outcome
        assert all(record.progress for record in outcome.records), outcome
        missed = list(outcome.not_reached)
        if not missed:
            return
    raise AssertionError(f"the moments of these faults did not come in {MOST_RUNS} runs: {', '.join(map(str, missed))}")
