"""The papers' tables from run directories: our values next to the published ones.

Rows are variants, columns are tasks, and each order of the tasks has a block of its own. docs/ANALYSIS.md lists the
tables.
"""

from __future__ import annotations

from collections.abc import Sequence

from ray_l4.errors import ConfigError
from ray_l4.report import caption
from ray_l4.report.aggregate import AVERAGE, GENERAL_TEXT
from ray_l4.report.measures import MEASURES
from ray_l4.report.paired import PairedTable, compare
from ray_l4.report.results import Results
from ray_l4.report.tables import sheet
from ray_l4.report.tables.published_tables import PublishedTable, keys, published_table
from ray_l4.report.tables.sheet import Sheet

NO_TABLE = "none"
_BY_TASK = frozenset({"scores", "orders", "forgetting"})
"""Measures of published tables whose columns are tasks."""


def build(results: Results, key: str | None = None, student: int | None = None) -> Sheet:
    """Return the sheet of a published table, or of our runs alone if ``key`` is None.

    Raises ConfigError if there is no such table, if the runs did not learn its tasks, or if no run has ``student``.
    """
    published = published_table(key) if key else None
    if published and published.measure in _BY_TASK:
        _refuse_other_tasks(results, str(key), published)
    students = _students(results, published, student)
    table = MEASURES[published.measure if published else "scores"](results, students)
    columns, cells = sheet.columns(table, published), published.cells() if published else {}
    return Sheet(
        title=caption.title(results, f"{published.source}: {published.title}") if published else caption.name(results),
        setting=caption.setting(results),
        columns=columns,
        blocks=sheet.blocks(table, columns, cells),
        notes=(
            *(published.notes if published else ()),
            *_definition(results, columns, published),
            *_general(results, columns),
            *_left_out(results, sheet.missing(table, cells)),
        ),
        digits=table.digits,
        published_digits=published.digits if published else table.digits,
        key=key or "",
        scale=results.scale,
        paired=_paired(results, student or 0),
    )


def _paired(results: Results, student: int) -> PairedTable | None:
    """Return the paired differences to the variant that the results name; None if they name none."""
    against = results.against
    return None if against is None else compare(results.runs, against, student, results.forgetting)


def _students(results: Results, published: PublishedTable | None, student: int | None) -> tuple[int, ...]:
    """Return the student that was asked for, else those of the paper that our runs have."""
    if student is not None:
        return (student,)
    wanted = published.students() if published else (0,)
    return tuple(each for each in wanted if any(each in run.students for run in results.runs))


def _refuse_other_tasks(results: Results, key: str, published: PublishedTable) -> None:
    of_paper = {task for task in sheet.columns_of_paper(published) if task != AVERAGE}
    if not of_paper <= set(results.tasks):
        raise ConfigError(
            f"--table {key}: shows {', '.join(sorted(of_paper))}, but the runs learned {', '.join(results.tasks)}. "
            f"Choose another table ({', '.join(keys())}), or --table {NO_TABLE} for the runs alone."
        )


def _definition(results: Results, columns: Sequence[str], published: PublishedTable | None) -> list[str]:
    """Return a note that defines forgetting, if the table shows it."""
    if results.forgetting not in columns and (published is None or published.measure != "forgetting"):
        return []
    highest = "epoch" if results.over_epochs else "task"
    return [f"Forgetting: highest score after any {highest} minus final score, of every task but the one learned last."]


def _general(results: Results, columns: Sequence[str]) -> list[str]:
    """Return a note on the perplexities on general text: which text it is, or that the runs' texts differ."""
    texts = [run.general for run in results.runs if run.general]
    if GENERAL_TEXT in columns:
        return [f"{GENERAL_TEXT}: final perplexity on general text ({texts[0]['text']}, {texts[0]['tokens']} tokens)."]
    if len({text["digest"] for text in texts}) > 1:
        return ["Perplexities on general text are left out: the runs have different texts."]
    return []


def _left_out(results: Results, orders: Sequence[str]) -> list[str]:
    notes = [f"No run of: {'; '.join(orders)}."] if orders else []
    if results.unfinished:
        notes.append(f"Left out because they have not finished: {', '.join(path.name for path in results.unfinished)}.")
    return notes


def chosen_table(results: Results, option: str | None) -> str | None:
    """Return the table that was asked for, else the one that all sweeps reproduce; None for our runs alone."""
    if option is not None:
        return None if option == NO_TABLE else option
    of_sweeps = {sweep.table for sweep in results.sweeps}
    return of_sweeps.pop() if len(of_sweeps) == 1 else None
