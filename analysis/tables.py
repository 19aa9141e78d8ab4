"""The papers' tables from run directories: our values next to the published ones.

::

    python -m analysis.tables SWEEP_OR_RUN_DIR... [--table l4-table2] [--format markdown|latex|csv] [--out FILE]

Rows are variants, columns are tasks, and each order of the tasks has a block of its own. ``--table`` names the
published table (default: that of the sweep; ``none``: our runs alone). docs/ANALYSIS.md lists the tables.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from analysis import caption, sheet
from analysis.command import exit_status
from analysis.measures import MEASURES
from analysis.published_tables import PublishedTable, keys, published_table
from analysis.render import FORMATS, SUFFIXES
from analysis.results import Results, load
from analysis.sheet import Sheet
from ray_l4.errors import ConfigError
from ray_l4.report.aggregate import AVERAGE
from ray_l4.store.atomic import write_text

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
        notes=(*(published.notes if published else ()), *_left_out(results, sheet.missing(table, cells))),
        digits=table.digits,
        published_digits=published.digits if published else table.digits,
        key=key or "",
        scale=results.scale,
    )


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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.tables", description="Compare finished runs with a published table."
    )
    parser.add_argument("folders", metavar="SWEEP_OR_RUN_DIR", nargs="+", type=Path)
    parser.add_argument(
        "--table", help=f"published table: {', '.join(keys())}; or {NO_TABLE} (default: that of the sweep)"
    )
    parser.add_argument(
        "--format", choices=FORMATS, help="output format (default: by the suffix of --out, else markdown)"
    )
    parser.add_argument("--out", metavar="FILE", type=Path, help="write to this file instead of printing")
    parser.add_argument("--student", metavar="N", type=int, help="student to show, counted from 0")
    parser.add_argument("--partial", action="store_true", help="leave out trials of a sweep that have not finished")
    options = parser.parse_args(arguments)

    def work() -> None:
        results = load(options.folders, partial=options.partial)
        name = options.format or SUFFIXES.get(options.out.suffix if options.out else ".md", "markdown")
        text = FORMATS[name](build(results, chosen_table(results, options.table), options.student))
        if options.out is None:
            print(text, end="")
        else:
            _write(options.out, text)
            print(options.out)

    return exit_status(work)


def _write(out: Path, text: str) -> None:
    try:
        write_text(out, text)
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot be written ({error.strerror})") from error


if __name__ == "__main__":
    sys.exit(main())
