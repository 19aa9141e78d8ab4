"""The sweep directory: one run directory for each trial, and a record of the trials.

::

    sweep.json      the request and all trials
    TRIAL/          run directories
    logs/TRIAL.log  output of each run
    table.md        the table of the trials finished so far
    .tune/          Ray Tune's own files while the sweep runs
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from ray_l4.config.experiment import DECIDED_LATER, MEASURED_LATER, ExperimentConfig
from ray_l4.errors import RunDirectoryError
from ray_l4.report.aggregate import aggregate, to_markdown
from ray_l4.report.finished_run import FinishedRun
from ray_l4.report.markdown import run_report
from ray_l4.report.paired import compare
from ray_l4.report.paired_text import paired_markdown
from ray_l4.store.atomic import write_text
from ray_l4.store.lock import LOCK
from ray_l4.store.mirror import mirror_of
from ray_l4.store.names import make_private
from ray_l4.store.run_directory import RunDirectory, read_json
from ray_l4.store.sealed import write_record
from ray_l4.sweep.trials import Sweep, Trial

TrialState = Literal["new", "begun", "done"]

_RECORD = "sweep.json"
_IDENTITY = ("name", "title", "scale", "table")
"""Fields that must stay the same from call to call; seeds, orders and variants may be added."""
_BEFORE_A_RUN = {"cluster.yaml", "manifest.json", "state.json"}
"""Files that may exist in a run directory before config.yaml, which makes it a run."""


class SweepDirectory:
    """Paths and records of one sweep."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()

    def run_path(self, trial: Trial) -> Path:
        """Return the run directory of a trial."""
        return self.path / trial.name

    def log_path(self, trial: Trial) -> Path:
        """Return the log file of a trial's run."""
        return self.path / "logs" / f"{trial.name}.log"

    @property
    def tune_path(self) -> Path:
        """Directory of Ray Tune's own files."""
        return self.path / ".tune"

    @property
    def exists(self) -> bool:
        """True if a sweep has been recorded here."""
        return (self.path / _RECORD).is_file()

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Create the directory and lock it for this process. Raises RunDirectoryError if another process holds it."""
        try:
            if not self.path.is_dir():
                make_private(self.path)
        except OSError as error:
            raise RunDirectoryError(f"{self.path}: cannot be created ({error.strerror})") from error
        with RunDirectory(self.path).lock():
            yield

    def states(self, sweep: Sweep) -> dict[str, TrialState]:
        """Return the state of each trial by name.

        Raises RunDirectoryError if the directory holds something else, or a run with other settings.
        """
        self._check_identity(sweep)
        return {trial.name: self._state(trial) for trial in sweep.trials}

    def record(self, sweep: Sweep) -> None:
        """Write the sweep and its trials to ``sweep.json``; trials of earlier calls are kept."""
        trials = {entry["folder"]: entry for entry in self._recorded().get("trials", ())}
        trials |= {trial.name: _entry(trial) for trial in sweep.trials}
        identity = {name: getattr(sweep, name) for name in _IDENTITY}
        write_record(self.path / _RECORD, {**identity, "against": sweep.against, "trials": list(trials.values())})

    def provenance(self) -> dict[str, object]:
        """Return the entries that every run's manifest holds about the sweep: its title and scale."""
        record = self._recorded()
        return {"sweep": record["title"], "scale": record["scale"]}

    def write_missing_reports(self) -> None:
        """Write the report of each run that was killed after writing its summary and before its report.

        Its copy, if it has one, is brought up to date.
        """
        for entry in self._recorded()["trials"]:
            run = RunDirectory(self.path / entry["folder"])
            if run.has_finished() and not (run.path / "report.md").is_file():
                mirror = mirror_of(run, run.cluster())
                if mirror is not None:
                    mirror.push(run.path)
                write_text(run.path / "report.md", run_report(FinishedRun.open(run.path)))
                if mirror is not None:
                    mirror.push(run.path)

    def discard(self, trial: Trial) -> None:
        """Delete a trial's run directory; for runs that were killed too early to be resumed."""
        if self.run_path(trial).is_dir():
            shutil.rmtree(self.run_path(trial))

    def write_table(self) -> str | None:
        """Write the table of all finished trials to ``table.md`` and return it; None if no trial has finished."""
        record = self._recorded()
        runs = [RunDirectory(self.path / entry["folder"]) for entry in record["trials"]]
        finished = [FinishedRun.open(run.path) for run in runs if run.has_finished()]
        if not finished:
            return None
        missing = len(runs) - len(finished)
        title = record["title"] + (f" ({missing} of {len(runs)} trials missing)" if missing else "")
        against = record.get("against")
        paired = [] if against is None else [paired_markdown(compare(finished, against))]
        text = "\n\n".join([f"# {title}", to_markdown(aggregate(finished)), *paired]) + "\n"
        write_text(self.path / "table.md", text)
        return text

    def _recorded(self) -> dict[str, Any]:
        return read_json(self.path / _RECORD) if self.exists else {}

    def _check_identity(self, sweep: Sweep) -> None:
        """Raise RunDirectoryError if the directory holds another sweep, or files that belong to none."""
        if not self.exists:
            if self.path.exists() and not (self.path.is_dir() and all(_is_lock(own) for own in self.path.iterdir())):
                raise RunDirectoryError(f"{self.path}: exists already and is not a sweep. Choose another --out.")
            return
        record = self._recorded()
        for name in _IDENTITY:
            if record.get(name) != getattr(sweep, name):
                raise RunDirectoryError(
                    f"{self.path}: holds another sweep: its {name} is {record.get(name)!r}, not "
                    f"{getattr(sweep, name)!r}. Choose another --out."
                )

    def _state(self, trial: Trial) -> TrialState:
        path = self.run_path(trial)
        if not (path / "config.yaml").is_file():
            if path.exists():
                _check_only_run_files(path)
            return "new"
        _check_same_settings(path, RunDirectory(path).experiment(), trial.experiment)
        return "done" if RunDirectory(path).has_finished() else "begun"


def _entry(trial: Trial) -> dict[str, object]:
    experiment = trial.experiment
    return {
        "folder": trial.name,
        "variant": experiment.variant,
        "method": experiment.method,
        "stream": trial.stream,
        "seed": experiment.seed,
        "settings": dict(trial.settings),
    }


def _check_only_run_files(path: Path) -> None:
    if not path.is_dir():
        raise RunDirectoryError(f"{path}: expected a run directory, found a file. Move it away.")
    others = [file.name for file in path.iterdir() if file.name not in _BEFORE_A_RUN and not file.name.startswith(".")]
    if others:
        raise RunDirectoryError(f"{path}: contains {others[0]!r} but no run. Move it away, or choose another --out.")


def _check_same_settings(path: Path, existing: ExperimentConfig, requested: ExperimentConfig) -> None:
    before, now = (dict(_flatten(config.model_dump(mode="json"))) for config in (existing, requested))
    left = {key for key, value in DECIDED_LATER.items() if now.get(key) == value}
    compared = sorted({*before, *now} - {*MEASURED_LATER} - left)
    changed = [key for key in compared if before.get(key) != now.get(key)]
    if changed:
        listed = ", ".join(f"{key} is {before.get(key)!r} there and {now.get(key)!r} here" for key in changed[:3])
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise RunDirectoryError(
            f"{path}: this run was made with other settings: {listed}{more}. Choose another --out, or move it away."
        )


def _flatten(value: object, key: str = "") -> Iterator[tuple[str, object]]:
    """Yield the leaves of nested mappings and lists with their dotted keys."""
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        yield key, value
        return
    for name, inner in items:
        yield from _flatten(inner, f"{key}.{name}" if key else str(name))


def describe_states(states: Iterable[TrialState]) -> str:
    """Return the number of trials in each state as a phrase."""
    counts = Counter(states)
    return f"{counts.total()} trials: {counts['done']} already done, {counts['begun']} begun, {counts['new']} new"


def _is_lock(path: Path) -> bool:
    return path.name.startswith(LOCK)
