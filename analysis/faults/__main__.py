"""Injects faults into small runs at random moments, and compares the results with those of undisturbed runs.

::

    python -m analysis.faults --rounds 200 --seed 1 --out FOLDER [--only WHAT,WHOM,PHASE]

Appends a line for each fault and for each run to ``faults.jsonl`` in FOLDER, writes the table to ``faults.md``, and
prints both as they come. A run that is not as it has to be stays in FOLDER (with ``--keep``, every run). The exit
status is 1 if there was one, or if fewer faults could be injected. Linux only: processes are seen through ``/proc``.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from analysis.faults.fault import Deck, Fault, every_fault, selected
from analysis.faults.outcome import Outcome
from analysis.faults.processes import MARK
from analysis.faults.subjects import SUBJECTS, References, several_nodes, write_files
from analysis.faults.table import json_lines, markdown
from analysis.faults.trial import Trial, new_mark

_MOST_EMPTY = 3
"""Runs one after another in which no fault could be injected, before giving up."""


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


class Campaign:
    """Many runs, until as many faults have been injected as were asked for."""

    def __init__(self, faults: Sequence[Fault], seed: int, out: Path, *, keep: bool) -> None:
        """``out``: an empty folder. ``keep``: whether every run stays there, not only those with complaints."""
        self._keeps_all = keep
        self._deck, self._seed, self._out = Deck(faults, seed), seed, out
        self._references = References(out / "undisturbed")
        self._outcomes: list[Outcome] = []
        self._not_reached: list[Fault] = []

    def carry_out(self, rounds: int, per_run: int) -> int:
        """Inject ``rounds`` faults, ``per_run`` in each run; return the exit status."""
        began, empty = time.monotonic(), 0
        while (injected := self._injected()) < rounds and empty < _MOST_EMPTY:
            faults = self._deck.deal(min(per_run, rounds - injected))
            self._say(
                f"{injected} of {rounds} faults, {time.monotonic() - began:.0f} s; next: {', '.join(map(str, faults))}"
            )
            outcome = self._run(faults)
            self._outcomes.append(outcome)
            self._not_reached += self._deck.put_back(outcome.not_reached)
            self._keep(outcome)
            empty = 0 if outcome.records else empty + 1
        return int(injected < rounds or any(outcome.complaints for outcome in self._outcomes))

    def _injected(self) -> int:
        return sum(len(outcome.records) for outcome in self._outcomes)

    def _run(self, faults: Sequence[Fault]) -> Outcome:
        """Carry out the next run; what goes wrong in doing so belongs to its outcome, and the others go on."""
        number = len(self._outcomes)
        subject, folder = subject_of(number), self._out / f"run-{number}"
        began = time.monotonic()
        try:
            outcome = one_run(faults, subject, self._seed * 10_000 + number, folder, self._references)
        except Exception as error:
            traceback.print_exc()
            failure = [f"it could not be carried out: {type(error).__name__}: {error}"]
            return Outcome(subject, [], list(faults), failure, [], time.monotonic() - began)
        if not outcome.complaints and not self._keeps_all:
            shutil.rmtree(folder)
        return outcome

    def _keep(self, outcome: Outcome) -> None:
        with (self._out / "faults.jsonl").open("a", encoding="utf-8") as records:
            for line in json_lines(outcome):
                print(line, file=records)
                self._say(line)
        text = markdown(self._outcomes, self._not_reached)
        (self._out / "faults.md").write_text(text + "\n", encoding="utf-8")

    def _say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)


def _names(faults: Sequence[Fault]) -> str:
    return ", ".join(map(str, faults))


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, run, print the table; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m analysis.faults", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=200, help="number of faults (default: 200)")
    parser.add_argument("--seed", type=int, default=1, help="seed of faults and moments (default: 1)")
    parser.add_argument("--per-run", type=int, default=6, help="faults in one run (default: 6)")
    parser.add_argument("--only", help="WHAT,WHOM,PHASE: only these faults; an empty part or * stands for all")
    parser.add_argument("--out", type=Path, required=True, help="new folder for the records and for runs that differ")
    parser.add_argument("--keep", action="store_true", help="keep the folders of all runs")
    given = parser.parse_args(arguments)
    faults = selected(every_fault(), given.only)
    if not faults:
        parser.error(f"--only {given.only}: there is no such fault. There are: {_names(every_fault())}.")
    if given.out.exists() and any(given.out.iterdir()):
        parser.error(f"--out {given.out}: is not empty. Name a new folder.")
    given.out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # and the run under way is ended
    status = Campaign(faults, given.seed, given.out, keep=given.keep).carry_out(given.rounds, given.per_run)
    print((given.out / "faults.md").read_text(encoding="utf-8"))
    return status


if __name__ == "__main__":
    sys.exit(main())
