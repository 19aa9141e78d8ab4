"""Perplexities on the general text in a summary and in reports: what the models keep of what pretraining knew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from ray_l4.report.run_result import RunResult
from ray_l4.store.general import GENERAL, read_general, start_cell
from ray_l4.store.run_directory import Cell, RunDirectory

DIGITS = 2
"""Digits after the decimal point of a perplexity."""


def general_part(run: RunDirectory, epochs: Sequence[int], peers: int, *, independent: bool) -> dict[str, Any]:
    """Return the entries of a summary about the general text; none if no perplexity is on record.

    Only those on the text that was used last count: on another one, perplexities cannot be compared.

    Args:
        epochs: the epoch that is the result of each stage.
        peers: number of students.
        independent: whether each stage trains a model of its own; a student's final value is then their mean.
    """
    records = read_general(run)
    if not records:
        return {}
    results = [cell for cell in records if cell.stage in range(len(epochs)) and cell.epoch == epochs[cell.stage]]
    last = records[max(results or records)]
    values = {cell: own["perplexity"] for cell, own in records.items() if own["digest"] == last["digest"]}
    after = {
        str(student): [values.get(Cell(stage, epoch, student, GENERAL)) for stage, epoch in enumerate(epochs)]
        for student in range(peers)
    }
    return {
        "general": {
            **{key: last[key] for key in ("text", "tokens", "digest")},
            "perplexity": {name: [values.get(start_cell(int(name))), *course] for name, course in after.items()},
        },
        "general_perplexity": {name: _final(course, independent) for name, course in after.items()},
    }


def _final(after: Sequence[float | None], independent: bool) -> float | None:
    if not independent:
        return after[-1]
    known = [value for value in after if value is not None]
    return fmean(known) if len(known) == len(after) else None


def general_rows(run: RunResult) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of a table: every student's perplexity before the first stage, and after each."""
    rows = [
        [
            f"student {student}",
            *("–" if value is None else f"{value:.{DIGITS}f}" for value in run.general_course(student)),
        ]
        for student in run.students
    ]
    return ["perplexity", "before", *(f"after {stage}" for stage in run.stages)], rows


def general_note(general: Mapping[str, Any]) -> str:
    """Return what the table shows, in words."""
    return (
        f"Perplexity on general text that no stage learns ({general['text']}, {general['tokens']} tokens). It rises as "
        "a model loses what it knew before the first stage."
    )
