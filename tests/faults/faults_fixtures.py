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
    """Carry out a run. Its moments are drawn from a fixed seed, but depend on the machine as well.

    On a busy machine, a short phase may be over before its fault; no more than one may be missed so.
    """
    with FileLock(f"{references.folder}.lock"):  # another test process may need the same one
        references.of(run.subject)
    outcome = one_run(run.faults, run.subject, 1, folder, references)
    assert outcome.complaints == [], outcome
    assert len(outcome.not_reached) <= 1, outcome
    assert all(record.progress for record in outcome.records), outcome
