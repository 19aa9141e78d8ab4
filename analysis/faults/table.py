"""The outcomes of many runs as a Markdown table, and as lines of JSON."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from statistics import median

from analysis.faults.fault import PHASES
from analysis.faults.trial import Outcome, Record
from ray_l4.report.markdown import table

HEADER = ("fault", "phases", "faults", "by itself", "recovery s, median", "recovery s, max", "commands typed")


def markdown(outcomes: Sequence[Outcome]) -> str:
    """Return a table with a row for each kind of fault, and a line of totals."""
    rows: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in _records(outcomes):
        rows[record.fault.what, record.fault.whom].append(record)
    lines = [_row(f"{what} {whom}", records) for (what, whom), records in sorted(rows.items())]
    everything = list(_records(outcomes))
    lines.append(_row("all", everything))
    different = [outcome for outcome in outcomes if outcome.differences]
    return "\n".join(
        [
            table(HEADER, lines),
            "",
            f"Runs: {len(outcomes)}; with results that are lost or differ: {len(different)}; "
            f"that left processes behind: {sum(bool(o.left) for o in outcomes)}. "
            f"Steps done again: {sum(o.steps_again for o in outcomes)}. "
            f"Commands typed beyond one for each killed command: {sum(_needless(r) for r in everything)}. "
            f"Faults whose moment did not come: {sum(len(o.not_reached) for o in outcomes)}. "
            f"Seconds: {sum(o.seconds for o in outcomes):.0f}.",
        ]
    )


def failed(outcomes: Sequence[Outcome]) -> bool:
    """Return whether a result was lost or differs."""
    return any(outcome.differences for outcome in outcomes)


def json_lines(outcome: Outcome) -> Iterator[str]:
    """Yield a line for each fault of a run, and one for the run."""
    for record in outcome.records:
        fault = record.fault
        yield json.dumps(
            {
                "what": fault.what,
                "whom": fault.whom,
                "phase": fault.phase,
                "subject": outcome.subject,
                "recovery_seconds": record.recovery_seconds,
                "commands": record.commands,
                "exit_codes": record.exit_codes,
                "notes": record.notes,
            }
        )
    yield json.dumps(
        {
            "run": outcome.subject,
            "faults": len(outcome.records),
            "not_reached": [str(fault) for fault in outcome.not_reached],
            "differences": outcome.differences,
            "left": outcome.left,
            "steps_again": outcome.steps_again,
            "seconds": outcome.seconds,
        }
    )


def _records(outcomes: Sequence[Outcome]) -> Iterator[Record]:
    return (record for outcome in outcomes for record in outcome.records)


def _needless(record: Record) -> int:
    return max(0, record.commands - record.fault.allowed_commands)


def _row(name: str, records: Sequence[Record]) -> list[str]:
    seconds = [r.recovery_seconds for r in records if r.recovery_seconds is not None]
    phases = {r.fault.phase for r in records}
    return [
        name,
        ", ".join(phase for phase in PHASES if phase in phases) if name != "all" else "",
        str(len(records)),
        str(sum(not r.commands and r.recovery_seconds is not None for r in records)),
        f"{median(seconds):.1f}" if seconds else "",
        f"{max(seconds):.1f}" if seconds else "",
        str(sum(r.commands for r in records)),
    ]
