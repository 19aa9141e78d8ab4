"""The outcomes of many runs as a Markdown table, and as lines of JSON."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from statistics import median

from analysis.faults.fault import PHASES, Fault
from analysis.faults.outcome import Outcome, Record
from ray_l4.report.markdown import table

HEADER = ("fault", "phases", "faults", "recovery s, median", "recovery s, max", "steps again, max", "commands typed")


def markdown(outcomes: Sequence[Outcome], not_reached: Sequence[Fault] = ()) -> str:
    """Return a table with a row for each kind of fault, what it adds up to, and what is not as it has to be.

    ``not_reached``: faults whose moment did not come in any run.
    """
    rows: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in _records(outcomes):
        rows[record.fault.what, record.fault.whom].append(record)
    everything = list(_records(outcomes))
    by_itself = [record for record in everything if not record.fault.allowed_commands]
    lines = [_row(f"{what} {whom}", records) for (what, whom), records in sorted(rows.items())]
    lines += [_row("all that need no command", by_itself), _row("all", everything)]
    overtaken = [record for record in everything if record.recovery_seconds is None and not record.notes]
    complaints = [f"- run {number}: {line}" for number, o in enumerate(outcomes) for line in o.complaints]
    totals = {
        "faults": len(everything),
        "runs": len(outcomes),
        "results lost or different": sum(len(outcome.differences) for outcome in outcomes),
        "processes left behind": sum(len(outcome.left) for outcome in outcomes),
        "steps done again": sum(record.steps_again for record in everything),
        "commands typed that should not be needed": sum(record.needless_commands for record in everything),
        "faults followed by another before the recovery": len(overtaken),
        "faults whose moment did not come": len(not_reached),
        "minutes": round(sum(outcome.seconds for outcome in outcomes) / 60),
    }
    return "\n".join(
        [
            table(HEADER, lines),
            "",
            *(f"- {name}: {value}" for name, value in totals.items()),
            *(["", "Not as it has to be:", "", *complaints] if complaints else []),
        ]
    )


def json_lines(outcome: Outcome) -> Iterator[str]:
    """Yield a line for each fault of a run, and one for the run."""
    for record in outcome.records:
        values = asdict(record)
        yield json.dumps({**values.pop("fault"), "subject": outcome.subject, **values})
    yield json.dumps(
        {
            "run": outcome.subject,
            "faults": len(outcome.records),
            "not_reached": [str(fault) for fault in outcome.not_reached],
            "differences": outcome.differences,
            "left": outcome.left,
            "seconds": outcome.seconds,
        }
    )


def _records(outcomes: Sequence[Outcome]) -> Iterator[Record]:
    return (record for outcome in outcomes for record in outcome.records)


def _row(name: str, records: Sequence[Record]) -> list[str]:
    seconds = [r.recovery_seconds for r in records if r.recovery_seconds is not None]
    phases = {r.fault.phase for r in records}
    return [
        name,
        ", ".join(phase for phase in PHASES if phase in phases) if not name.startswith("all") else "",
        str(len(records)),
        f"{median(seconds):.1f}" if seconds else "",
        f"{max(seconds):.1f}" if seconds else "",
        str(max((r.steps_again for r in records), default=0)),
        str(sum(r.commands for r in records)),
    ]
