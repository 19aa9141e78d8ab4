"""The worst answers of a run, with what was asked: selection for the page, and the part of ``report.md`` about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray_l4.report.finished_run import FinishedRun
from ray_l4.report.html.text import shortened, visible
from ray_l4.store.run_directory import Cell, row_title

Row = Mapping[str, Any]
"""An answer: column -> value."""

IN_MARKDOWN = 3
"""Number of answers to each task in ``report.md``."""
LONGEST_LINE = 240
"""Largest number of characters of a text in ``report.md``."""
REFERENCES = 3
"""Largest number of references shown for an answer."""


@dataclass(frozen=True)
class WorstAnswers:
    """The answers behind one score that are not entirely right."""

    caption: str
    """The checkpoint, its score, and how many answers are not right."""
    rows: Sequence[Row]
    """These answers, the worst first."""


def worst_answers(run: FinishedRun, cell: Cell) -> WorstAnswers | None:
    """Return the worst answers behind the score of ``cell``; None if the run directory holds no answers of it."""
    table = run.predictions(cell)
    if table is None or not table.num_rows:
        return None
    rows = table.to_pylist()
    low = worst(rows)
    found = "score less than 100" if "score" in rows[0] else "equal no reference"
    after = run.stages[cell.stage] if cell.stage < len(run.stages) else f"stage {cell.stage}"
    caption = (
        f"{row_title(cell.student).capitalize()} after {after}, epoch {cell.epoch}: {run.metrics[cell.task]} "
        f"{run.scores[cell]:.1f}; {len(low)} of {len(rows)} answers {found}"
    )
    return WorstAnswers(caption, low)


def worst(rows: Sequence[Row]) -> list[Row]:
    """Return the answers that score less than 100, the worst first. ``rows`` must not be empty.

    An early run has no scores of single answers: then return those that equal no reference, in the order of the test
    set.
    """
    if "score" in rows[0]:
        return sorted((row for row in rows if row["score"] < 100), key=lambda row: row["score"])
    return [row for row in rows if row["prediction"].strip() not in {text.strip() for text in row["references"]}]


def worst_in_markdown(run: FinishedRun, student: int) -> str:
    """Return the worst final answers of a student to every task as Markdown; empty if the run holds no answers."""
    parts = []
    for task in run.tasks:
        cell = run.last_scored_cell(student, task)
        found = worst_answers(run, cell) if cell is not None else None
        if found is not None:
            answers = "\n\n".join(map(_lines, found.rows[:IN_MARKDOWN]))
            listing = f"\n\n```text\n{answers}\n```" if answers else ""
            parts.append(f"### {_line(task)}\n\n{_line(found.caption)}.{listing}")
    return "\n\n".join(parts)


def _lines(row: Row) -> str:
    """Return an answer and what was asked, a line each. Runs of early versions do not know what was asked."""
    score = f", score {row['score']:.1f}" if "score" in row else ""
    texts = [(name, row[name]) for name in ("context", "question") if row.get(name)]
    texts += [("answer", row["prediction"]), *(("reference", text) for text in row["references"][:REFERENCES])]
    return "\n".join(
        [f"example {_line(row['sample_id'])}{score}", *(f"  {name + ':':<11}{_line(t)}" for name, t in texts)]
    )


def _line(text: str) -> str:
    """Return a text by users or models on one line, which no line of its own can end."""
    return shortened(visible(" ".join(str(text).split())), LONGEST_LINE)
