"""What tables and figures are made of: finished runs, from their own folders or from that of a sweep."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_l4.config.experiment import ExperimentConfig
from ray_l4.errors import ConfigError, RunDirectoryError
from ray_l4.methods import get_method
from ray_l4.report.aggregate import block_of, comparable
from ray_l4.report.markdown import variant_of
from ray_l4.store.run_directory import Cell, RunDirectory, read_json

SWEEP_FILE = "sweep.json"
_MAY_DIFFER = frozenset({"name", "seed", "variant", "stream", "teachers.run"})
"""Settings in which the runs of one row may differ; the tasks' own settings may not, only their order."""


@dataclass(frozen=True)
class Run:
    """A finished run."""

    directory: RunDirectory
    summary: Mapping[str, Any]
    experiment: ExperimentConfig

    @property
    def path(self) -> Path:
        """Its folder."""
        return self.directory.path

    @property
    def variant(self) -> str:
        """Name of the table row that it belongs to."""
        return variant_of(self.summary)

    @property
    def block(self) -> str:
        """Title of its order of the tasks."""
        return block_of(self.summary)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Its stream."""
        return tuple(self.summary["stream"])

    @property
    def seed(self) -> int:
        """Its run seed."""
        return int(self.summary["seed"])

    @property
    def scale(self) -> float | None:
        """Share of its protocol's examples and epochs that it had; None where it does not say."""
        scale: float | None = read_json(self.path / "manifest.json").get("scale")
        return scale

    def students(self) -> range:
        """Numbers of its students."""
        return range(int(self.summary["peers"]))

    def final_cell(self, student: int, task: str) -> Cell:
        """The cell of the score matrix whose score is the final one of a task."""
        rows = len(self.summary["score_matrix"][str(student)])
        alone = get_method(self.summary["method"]).stages == "separate"
        return Cell(self.tasks.index(task) if alone else rows - 1, self.experiment.training.epochs, student, task)

    def trajectory(self, student: int) -> dict[tuple[int, int], dict[str, float]]:
        """Scores of every checkpoint on disk: (stage, epoch) -> task -> percent, in the order of training."""
        found: dict[tuple[int, int], dict[str, float]] = {}
        for cell, record in sorted(self.directory.scores().items(), key=lambda item: item[0]):
            if cell.student == student:
                found.setdefault((cell.stage, cell.epoch), {})[cell.task] = record["values"][record["headline"]]
        return found


@dataclass(frozen=True)
class Sweep:
    """What a sweep's folder says about all of its runs."""

    path: Path
    title: str
    scale: float
    """Share of the protocol's examples and epochs that was run."""
    table: str | None
    """Key of the published table that the sweep rebuilds."""


@dataclass(frozen=True)
class Results:
    """Runs that can be compared, and where they come from."""

    runs: tuple[Run, ...]
    tasks: tuple[str, ...]
    sweeps: tuple[Sweep, ...] = ()
    unfinished: tuple[Path, ...] = ()
    """Trials of the sweeps that are left out because they have not finished."""

    @property
    def scale(self) -> float | None:
        """Scale of the sweeps, or of the runs without a sweep; None where it is not known. All have the same one."""
        return self.sweeps[0].scale if self.sweeps else self.runs[0].scale

    def blocks(self) -> dict[str, list[Run]]:
        """The runs of every order, in the order in which they appear."""
        found: dict[str, list[Run]] = {}
        for run in self.runs:
            found.setdefault(run.block, []).append(run)
        return found

    def variants(self) -> tuple[str, ...]:
        """Names of all rows, in the order in which they appear."""
        return tuple(dict.fromkeys(run.variant for run in self.runs))


def read_run(folder: Path) -> Run:
    """A finished run. Raises RunDirectoryError if ``folder`` is none."""
    directory = RunDirectory.open(folder)
    return Run(directory, directory.summary(), directory.experiment())


def load(folders: Sequence[Path], *, partial: bool = False) -> Results:
    """The runs in ``folders``: run directories, or folders of sweeps.

    With ``partial`` the trials of a sweep that have not finished are left out.

    Raises:
        RunDirectoryError: a folder is neither, or something in it has not finished or cannot be read.
        ConfigError: the runs cannot stand beside each other (other tasks, scales or settings, or a seed twice).
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
                f"{missing[0]}. Run the sweep again, which skips what is done; or leave them out: --partial"
            )
        sweeps.append(sweep)
        unfinished += missing
        paths += [trial for trial in trials if trial not in missing]
    runs = tuple(read_run(path) for path in paths)
    tasks = comparable([run.summary for run in runs], [str(path) for path in paths])
    _refuse_mixed(runs, sweeps)
    return Results(runs, tasks, tuple(sweeps), tuple(unfinished))


def _read_sweep(folder: Path) -> tuple[Sweep, list[Path]]:
    record = read_json(folder / SWEEP_FILE)
    try:
        trials = [folder / trial["folder"] for trial in record["trials"]]
        return Sweep(folder, record["title"], float(record["scale"]), record["table"]), trials
    except (KeyError, TypeError, ValueError) as error:
        raise RunDirectoryError(
            f"{folder / SWEEP_FILE}: not a sweep's record ({type(error).__name__}: {error})"
        ) from error


def _refuse_mixed(runs: Sequence[Run], sweeps: Sequence[Sweep]) -> None:
    scales = sorted({sweep.scale for sweep in sweeps} or {run.scale or 1.0 for run in runs})
    if len(scales) > 1:
        raise ConfigError(
            f"the {'sweeps' if sweeps else 'runs'} ran at scales {', '.join(map(str, scales))}; one table or figure "
            "holds one scale"
        )
    first: dict[tuple[str, str], Run] = {}
    for run in runs:
        other = first.setdefault((run.block, run.variant), run)
        mine, theirs = dict(_settings(run)), dict(_settings(other))
        for key in sorted(mine.keys() | theirs.keys()):
            if mine.get(key) != theirs.get(key):
                raise ConfigError(
                    f"{other.path} and {run.path} are both {run.variant} but differ in {key}: {theirs.get(key)} and "
                    f"{mine.get(key)}. A row holds runs that differ in the seed alone; call one of them differently by "
                    "'variant' in its experiment file, or leave it out."
                )


def _settings(run: Run) -> Iterator[tuple[str, object]]:
    """Everything that decides a run's result, as ``group.key`` and value."""
    record = run.experiment.model_dump(mode="json")
    for task in record["stream"]:
        yield from ((f"stream.{task['name']}.{key}", value) for key, value in task.items())
    for key, value in record.items():
        inside = value.items() if isinstance(value, dict) else [(None, value)]
        names = ((key if name is None else f"{key}.{name}", each) for name, each in inside)
        yield from ((name, each) for name, each in names if name not in _MAY_DIFFER)


def teachers_of(run: Run) -> Run | None:
    """The run that trained a run's teachers: the one in its folder, or the one it was given. None without teachers."""
    inside, given = run.directory.teachers(), run.experiment.teachers.run
    if (inside / "config.yaml").is_file():
        return read_run(inside)
    return read_run(given) if given and get_method(run.summary["method"]).teacher == "task" else None
