"""Scores of inspected models as a user sees them: a table, JSON lines, or single answers."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from ray_l4.setup.inspected import Inspected
    from ray_l4.setup.loaded import TaskScore

Record = dict[str, Any]
"""A score as JSON values."""


def show_answers(found: Inspected, score: TaskScore, count: int) -> None:
    """Print the first answers to a task to stderr, with what was asked."""
    if count:
        typer.echo(f"{found.name}: {score.tests.task}", err=True)
    for index, item in enumerate(score.tests.items[:count]):
        asked = [f"  {name + ':':<11} {texts[index]}" for name, texts in score.tests.asked.items() if texts[index]]
        answer = [f"  prediction: {score.scored.predictions[index]}", f"  reference:  {' | '.join(item.references)}"]
        typer.echo("\n".join([item.sample_id, *asked, *answer]), err=True)


def record_of(found: Inspected, score: TaskScore) -> Record:
    """Return a score: which model and task, and all values of the metric."""
    place = found.checkpoint
    where = {} if place is None else {"stage": place.stage, "epoch": place.epoch, "student": place.student}
    return {
        "model": str(found.folder) if found.folder is not None else found.name,
        **where,
        "task": score.tests.task,
        "examples": len(score.tests.items),
        "headline": score.scored.headline,
        **score.scored.values,
    }


def json_lines(results: Sequence[tuple[str, Sequence[Record]]]) -> str:
    """Return every score of all models as one line of JSON."""
    return "".join(f"{json.dumps(record)}\n" for _, records in results for record in records)


def table_of(results: Sequence[tuple[str, Sequence[Record]]]) -> str:
    """Return a Markdown table with a row for each model and a column for each task."""
    from ray_l4.report.markdown import number, table

    columns = {record["task"]: record["headline"] for _, records in results for record in records}
    rows = []
    for name, records in results:
        own = {record["task"]: record[record["headline"]] for record in records}
        average = statistics.fmean(own.values()) if len(own) == len(columns) else None
        rows.append([name, *(number(own.get(task)) for task in columns), number(average)])
    return table(["model", *(f"{task} ({metric})" for task, metric in columns.items()), "average"], rows)
