"""The folder of a sweep: a run directory for each trial, and the record of what belongs together.

::

    sweep.json      what was asked for, and every trial
    TRIAL/          run directories
    logs/TRIAL.log  what each run said
    table.md        the result, as far as it has come
    .tune/          Ray Tune's own files while it runs
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from ray_l4.config.experiment import ExperimentConfig
from ray_l4.errors import RunDirectoryError
from ray_l4.report.aggregate import aggregate, to_markdown
from ray_l4.report.finished_run import FinishedRun
from ray_l4.report.markdown import run_report
from ray_l4.store.atomic import write_json, write_text
from ray_l4.store.run_directory import RunDirectory, read_json
from ray_l4.sweep.trials import Plan, Trial

State = Literal["new", "begun", "done"]

_RECORD = "sweep.json"
_IDENTITY = ("name", "title", "scale", "table")
"""What makes two sweeps the same; one may be asked for again with more seeds, orders or variants."""
_BEFORE_A_RUN = {"cluster.yaml", "manifest.json", "state.json"}
"""What a run directory holds before the file that makes it one."""


class SweepFolder:
    """Paths and records of one sweep."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()

    def run(self, trial: Trial) -> Path:
        """The run directory of a trial."""
        return self.path / trial.folder

    def log(self, trial: Trial) -> Path:
        """Where its run says how it goes."""
        return self.path / "logs" / f"{trial.folder}.log"

    @property
    def scratch(self) -> Path:
        """For Ray Tune's own files."""
        return self.path / ".tune"

    @property
    def exists(self) -> bool:
        """Whether a sweep has been recorded here."""
        return (self.path / _RECORD).is_file()

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder for this process. Raises RunDirectoryError if another one has it."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunDirectoryError(f"{self.path}: cannot be made ({error.strerror})") from error
        with RunDirectory(self.path).lock():
            yield

    def states(self, plan: Plan) -> dict[str, State]:
        """How far each trial has come, by its folder.

        Raises RunDirectoryError if something else is here, or a run that was made from other settings.
        """
        self._refuse_another(plan)
        return {trial.folder: self._state(trial) for trial in plan.trials}

    def record(self, plan: Plan) -> None:
        """Write down what the folder holds; trials of earlier calls stay."""
        trials = {entry["folder"]: entry for entry in self._recorded().get("trials", ())}
        trials |= {trial.folder: _entry(trial) for trial in plan.trials}
        identity = {name: getattr(plan, name) for name in _IDENTITY}
        write_json(self.path / _RECORD, {**identity, "trials": list(trials.values())})

    def provenance(self) -> dict[str, object]:
        """What the manifest of every run says of the sweep that is recorded here: its title and scale."""
        record = self._recorded()
        return {"sweep": record["title"], "scale": record["scale"]}

    def complete_reports(self) -> None:
        """Write the report of each run that was killed after its summary, which is written first."""
        for entry in self._recorded()["trials"]:
            run = RunDirectory(self.path / entry["folder"])
            if _finished(run.path) and not (run.path / "report.md").is_file():
                write_text(run.path / "report.md", run_report(FinishedRun.open(run.path)))

    def clear(self, trial: Trial) -> None:
        """Make way for a trial whose run did not get so far that it could be gone on with."""
        if self.run(trial).is_dir():
            shutil.rmtree(self.run(trial))

    def table(self) -> str | None:
        """All finished trials as one table, also written to ``table.md``; None if there is none."""
        record = self._recorded()
        runs = [RunDirectory(self.path / entry["folder"]) for entry in record["trials"]]
        finished = [FinishedRun.open(run.path) for run in runs if _finished(run.path)]
        if not finished:
            return None
        missing = len(runs) - len(finished)
        title = record["title"] + (f" ({missing} of {len(runs)} trials missing)" if missing else "")
        text = f"# {title}\n\n{to_markdown(aggregate(finished))}\n"
        write_text(self.path / "table.md", text)
        return text

    def _recorded(self) -> dict[str, Any]:
        return read_json(self.path / _RECORD) if self.exists else {}

    def _refuse_another(self, plan: Plan) -> None:
        if not self.exists:
            if self.path.exists() and (not self.path.is_dir() or any(p.name != ".lock" for p in self.path.iterdir())):
                raise RunDirectoryError(f"{self.path}: is there already, and no sweep. Choose another --out.")
            return
        record = self._recorded()
        for name in _IDENTITY:
            if record.get(name) != getattr(plan, name):
                raise RunDirectoryError(
                    f"{self.path}: holds another sweep: its {name} is {record.get(name)!r}, not "
                    f"{getattr(plan, name)!r}. Choose another --out."
                )

    def _state(self, trial: Trial) -> State:
        path = self.run(trial)
        if not (path / "config.yaml").is_file():
            if path.exists():
                _refuse_strange_files(path)
            return "new"
        _refuse_other_settings(path, RunDirectory(path).experiment(), trial.experiment)
        return "done" if _finished(path) else "begun"


def _finished(path: Path) -> bool:
    return (path / "summary.json").is_file()


def _entry(trial: Trial) -> dict[str, object]:
    experiment = trial.experiment
    return {
        "folder": trial.folder,
        "variant": experiment.variant,
        "method": experiment.method,
        "stream": trial.stream,
        "seed": experiment.seed,
        "settings": dict(trial.settings),
    }


def _refuse_strange_files(path: Path) -> None:
    if not path.is_dir():
        raise RunDirectoryError(f"{path}: is in the way of a run directory. Move it away.")
    strange = [file.name for file in path.iterdir() if file.name not in _BEFORE_A_RUN and not file.name.startswith(".")]
    if strange:
        raise RunDirectoryError(f"{path}: holds {strange[0]!r}, but no run. Move it away, or choose another --out.")


def _refuse_other_settings(path: Path, there: ExperimentConfig, here: ExperimentConfig) -> None:
    before, now = dict(_flat(there.model_dump(mode="json"))), dict(_flat(here.model_dump(mode="json")))
    changed = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    if changed:
        listed = ", ".join(f"{key} is {before.get(key)!r} there and {now.get(key)!r} here" for key in changed[:3])
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise RunDirectoryError(
            f"{path}: this run was made with other settings: {listed}{more}. Choose another --out, or move it away."
        )


def _flat(value: object, key: str = "") -> Iterator[tuple[str, object]]:
    """The leaves of nested mappings and lists, by dotted keys."""
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        yield key, value
        return
    for name, inner in items:
        yield from _flat(inner, f"{key}.{name}" if key else str(name))
