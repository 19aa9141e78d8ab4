"""Which finished stage of a run is served: the promotion record, ``promoted.json``.

It holds every promotion, the last of which counts, so that one can be taken back. A run without the file serves its
newest finished stage. Whoever promotes writes it (the gate of a live service, or a person), while students learn.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from ray_l4.errors import RunDirectoryError
from ray_l4.store.atomic import matching
from ray_l4.store.lock import LOCK, locked
from ray_l4.store.record_types import MOST, Record
from ray_l4.store.run_directory import RunDirectory, read_record
from ray_l4.store.sealed import write_record

FILE = "promoted.json"
_LOCK = f"{LOCK}.promotion"
_PATIENCE = 20.0
"""Seconds to wait for another process that decides."""


class Decision(BaseModel):
    """What was decided about a stage, and why."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    stage: Annotated[int, Field(ge=0, le=MOST)]
    promoted: bool
    """Whether the stage is served from then on; otherwise it is kept and not served."""
    by: Literal["gate", "hand"]
    why: str
    until: Annotated[int, Field(ge=0, le=MOST)] = 0
    """Number of stages that are decided on then: one by hand settles the matter for all that have finished."""
    when: str
    """Local time with its offset, as in ``2026-01-31 12:00:00+00:00``."""


class Decisions(Record):
    """The contents of ``promoted.json``."""

    decisions: list[Decision]


def decisions(run: RunDirectory) -> list[Decision]:
    """Return all decisions, in the order in which they were taken. Raises RunDirectoryError if the file is damaged."""
    path = run.path / FILE
    if not path.is_file():
        return []
    return Decisions.model_validate(read_record(path, Decisions)).decisions


def served_stage(run: RunDirectory) -> int | None:
    """Return the stage that is served: the one promoted last, or the newest finished one if none ever was.

    None if no stage has finished. Raises RunDirectoryError if a file is damaged.
    """
    done = run.state().stages_done
    promoted = [decision.stage for decision in decisions(run) if decision.promoted and decision.stage < done]
    if promoted:
        return promoted[-1]
    return done - 1 if done else None


def num_decided(run: RunDirectory) -> int:
    """Return the number of stages, from the first, that need no further decision. Raises as ``decisions``."""
    return max((max(decision.until, decision.stage + 1) for decision in decisions(run)), default=0)


def needed_stages(run: RunDirectory) -> set[int]:
    """Return the stages whose checkpoints promotion needs: the one that is served, and those still to be decided on.

    There are none without decisions. Raises as ``decisions``.
    """
    if not decisions(run):
        return set()
    served, undecided = served_stage(run), range(num_decided(run), run.state().stages_done)
    return set(undecided) if served is None else {served, *undecided}


def withdraw(run: RunDirectory, stages: int) -> None:
    """Forget the decisions about all but the first ``stages`` stages, which are learned again. Raises as ``decide``."""
    taken = decisions(run)
    kept = [decision for decision in taken if decision.stage < stages]
    if len(kept) < len(taken):
        with locked(run.path, _LOCK, patience=_PATIENCE):
            _write(run, [decision.model_copy(update={"until": min(decision.until, stages)}) for decision in kept])


def decide(run: RunDirectory, stage: int, *, promoted: bool, by: Literal["gate", "hand"], why: str) -> None:
    """Record a decision about a finished stage.

    Raises RunDirectoryError if the stage has not finished, if it is to be served and has no checkpoint any more, or if
    the file is damaged or cannot be written.
    """
    done = run.state().stages_done
    if not 0 <= stage < done:
        finished = f"stages 0 to {done - 1}" if done else "none"
        raise RunDirectoryError(f"{run.path}: stage {stage} cannot be served: it has not finished ({finished} have)")
    if promoted and not matching(run.path, f"checkpoints/stage-{stage}/epoch-*/student-*"):
        raise RunDirectoryError(
            f"{run.path}: stage {stage} cannot be served: its checkpoints are gone (checkpoint.keep). Choose another."
        )
    until = done if by == "hand" else stage + 1
    when = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    with locked(run.path, _LOCK, patience=_PATIENCE):
        _write(run, [*decisions(run), Decision(stage=stage, promoted=promoted, by=by, why=why, until=until, when=when)])


def _write(run: RunDirectory, taken: Sequence[Decision]) -> None:
    write_record(run.path / FILE, {"decisions": [decision.model_dump() for decision in taken]})
