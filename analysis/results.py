"""The runs behind a table or figure: from run directories, or from the folder of a sweep."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ray_l4.errors import ConfigError, RunDirectoryError
from ray_l4.report.aggregate import comparable_tasks
from ray_l4.report.finished_run import FinishedRun
from ray_l4.store.run_directory import read_json

SWEEP_FILE = "sweep.json"
_MAY_DIFFER = frozenset({"name", "seed", "variant", "stream", "teachers.run"})
"""Settings in which the runs of one row may differ: of ``stream`` the order, but not the settings of its tasks."""


@dataclass(frozen=True)
class Sweep:
    """A sweep's own record of what all its runs have in common."""

    path: Path
    title: str
    scale: float
    """Share of the protocol's examples and epochs that was run."""
    table: str | None
    """Key of the published table that the sweep reproduces."""


@dataclass(frozen=True)
class Results:
    """Runs that can be compared, and the sweeps that they come from."""

    runs: tuple[FinishedRun, ...]
    tasks: tuple[str, ...]
    """The tasks that all runs learned, in the order of the first run."""
    sweeps: tuple[Sweep, ...] = ()
    unfinished: tuple[Path, ...] = ()
    """Trials of the sweeps that are left out because they have not finished."""

    @property
    def scale(self) -> float | None:
        """The scale of all sweeps, or of all runs if there is no sweep; None if it is unknown."""
        return self.sweeps[0].scale if self.sweeps else self.runs[0].scale

    def by_order(self) -> dict[str, list[FinishedRun]]:
        """Return the runs of every order of the tasks, in the order in which they appear."""
        found: dict[str, list[FinishedRun]] = {}
        for run in self.runs:
            found.setdefault(run.order, []).append(run)
        return found

    def variants(self) -> tuple[str, ...]:
        """Return the names of all variants, in the order in which they appear."""
        return tuple(dict.fromkeys(run.variant for run in self.runs))


def load(folders: Sequence[Path], *, partial: bool = False) -> Results:
    """Read the runs in ``folders``, which are run directories or folders of sweeps.

    With ``partial``, trials of a sweep that have not finished are left out.

    Raises:
        RunDirectoryError: a folder is neither, or something in it has not finished or cannot be read.
        ConfigError: the runs cannot be compared (other tasks, scales or settings, or a seed twice).
    """
    paths: list[Path] = []
    sweeps: list[Sweep] = []
    unfinished: list[Path] = []
    for folder in folders:
        if not (folder / SWEEP_FILE).is_file():
            paths.append(folder)
            continue
        sweep, trials = _read_sweep(folder)
        missing = [trial for trial in trials if not (trial / "summary.json").is_file()]
        if missing and not partial:
            raise RunDirectoryError(
                f"{folder}: {len(missing)} of {len(trials)} trials of the sweep have not finished, such as "
                f"{missing[0]}. Run the sweep again, which skips finished trials, or leave these out: --partial"
            )
        sweeps.append(sweep)
        unfinished += missing
        paths += [trial for trial in trials if trial not in missing]
    runs = tuple(FinishedRun.open(path) for path in paths)
    tasks = comparable_tasks(runs, [str(path) for path in paths])
    _refuse_mixed(runs, sweeps)
    return Results(runs, tasks, tuple(sweeps), tuple(unfinished))


def _read_sweep(folder: Path) -> tuple[Sweep, list[Path]]:
    """Return a sweep and the folders of its trials."""
    record = read_json(folder / SWEEP_FILE)
    try:
        trials = [folder / trial["folder"] for trial in record["trials"]]
        return Sweep(folder, record["title"], float(record["scale"]), record["table"]), trials
    except (KeyError, TypeError, ValueError) as error:
        raise RunDirectoryError(
            f"{folder / SWEEP_FILE}: not the record of a sweep ({type(error).__name__}: {error})"
        ) from error


def _refuse_mixed(runs: Sequence[FinishedRun], sweeps: Sequence[Sweep]) -> None:
    """Raise ConfigError if scales differ, or settings of runs of one row."""
    scales = sorted({sweep.scale for sweep in sweeps} or {run.scale or 1.0 for run in runs})
    if len(scales) > 1:
        raise ConfigError(
            f"the {'sweeps' if sweeps else 'runs'} ran at scales {', '.join(map(str, scales))}; all runs of a table or "
            "figure must have the same scale"
        )
    first: dict[tuple[str, str], FinishedRun] = {}
    for run in runs:
        other = first.setdefault((run.order, run.variant), run)
        mine, theirs = dict(_settings(run)), dict(_settings(other))
        for key in sorted(mine.keys() | theirs.keys()):
            if mine.get(key) != theirs.get(key):
                raise ConfigError(
                    f"{other.path} and {run.path} are both {run.variant} but differ in {key}: {theirs.get(key)} and "
                    f"{mine.get(key)}. Runs of one row may differ only in the seed; give one of them another name with "
                    "'variant' in its experiment file, or leave it out."
                )


def _settings(run: FinishedRun) -> Iterator[tuple[str, object]]:
    """Yield every setting that decides a run's result, as ``group.key`` and value."""
    record = run.experiment.model_dump(mode="json")
    for task in record["stream"]:
        yield from ((f"stream.{task['name']}.{key}", value) for key, value in task.items())
    for key, value in record.items():
        inside = value.items() if isinstance(value, dict) else [(None, value)]
        names = ((key if name is None else f"{key}.{name}", each) for name, each in inside)
        yield from ((name, each) for name, each in names if name not in _MAY_DIFFER)
