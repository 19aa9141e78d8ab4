"""Injects faults into small runs at random moments, and compares the results with those of undisturbed runs.

::

    python -m analysis.faults --rounds 200 --seed 1 --out FOLDER [--only WHAT,WHOM,PHASE]

Writes ``faults.jsonl`` (a line for each fault and for each run) and ``faults.md`` (the table) to FOLDER, and prints the
table. The exit status is 1 if a result was lost or differs. Linux only: processes are seen through ``/proc``.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from analysis.faults.fault import Fault, every_fault, plan, selected
from analysis.faults.processes import MARK
from analysis.faults.subjects import SUBJECTS, References, several_nodes, write_files
from analysis.faults.table import failed, json_lines, markdown
from analysis.faults.trial import Outcome, Trial, new_mark


def one_run(faults: Sequence[Fault], subject: str, seed: int, folder: Path, references: References) -> Outcome:
    """Carry out a run with these faults in the new folder ``folder``."""
    expected = references.of(subject)
    mark = new_mark()
    with ExitStack() as stack:
        nodes = None
        if any(fault.on_nodes for fault in faults):
            nodes = stack.enter_context(several_nodes({MARK: mark}))
        files = write_files(subject, folder, nodes.address if nodes else None)
        return Trial(subject, files, seed, nodes, mark).carry_out(faults, expected)


def subject_of(number: int) -> str:
    """Return the subject of a run: two of three are L4, the others take turns."""
    others = [name for name in SUBJECTS if name != "l4"]
    return others[number // 3 % len(others)] if number % 3 == 2 else "l4"


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, run, print the table; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m analysis.faults", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=200, help="number of faults (default: 200)")
    parser.add_argument("--seed", type=int, default=1, help="seed of faults and moments (default: 1)")
    parser.add_argument("--per-run", type=int, default=4, help="faults in one run (default: 4)")
    parser.add_argument("--only", help="WHAT,WHOM,PHASE: only these faults; an empty part or * stands for all")
    parser.add_argument("--out", type=Path, required=True, help="folder for the records and for runs that differ")
    given = parser.parse_args(arguments)
    faults = selected(every_fault(), given.only)
    if not faults:
        parser.error(f"--only {given.only}: there is no such fault. There are: {', '.join(map(str, every_fault()))}.")
    given.out.mkdir(parents=True, exist_ok=True)
    references = References(given.out / "undisturbed")
    outcomes: list[Outcome] = []
    with (given.out / "faults.jsonl").open("a", encoding="utf-8") as records:
        for number, chosen in enumerate(plan(faults, given.rounds, given.seed, given.per_run)):
            folder = given.out / f"run-{number}"
            outcome = one_run(chosen, subject_of(number), given.seed * 10_000 + number, folder, references)
            outcomes.append(outcome)
            for line in json_lines(outcome):
                print(line, file=records, flush=True)
                print(line, file=sys.stderr, flush=True)
            if not outcome.differences:
                shutil.rmtree(folder)
    text = markdown(outcomes)
    (given.out / "faults.md").write_text(text + "\n", encoding="utf-8")
    print(text)
    return int(failed(outcomes))


if __name__ == "__main__":
    sys.exit(main())
