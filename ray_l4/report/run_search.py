"""The runs behind a command's paths: run directories, sweep folders, and what else a pattern like SWEEP/* matches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ray_l4.errors import RunDirectoryError
from ray_l4.store.run_directory import RunDirectory, read_json, why_no_run

SWEEP_FILE = "sweep.json"


@dataclass(frozen=True)
class Sweep:
    """A sweep's own record of what all its runs have in common."""

    path: Path
    title: str
    scale: float
    """Share of the protocol's examples and epochs that was run."""
    table: str | None
    """Key of the published table that the sweep reproduces."""
    trials: tuple[Path, ...] = ()
    """The run directories of all trials; those of new trials do not exist yet."""
    against: str | None = None
    """The variant that the others are compared with, run by run. Early sweeps have none."""


@dataclass(frozen=True)
class FoundRuns:
    """The runs behind a command's paths, each once."""

    finished: tuple[Path, ...] = ()
    unfinished: tuple[Path, ...] = ()
    """Runs, and trials of sweeps, that have not finished."""
    sweeps: tuple[Sweep, ...] = ()
    others: tuple[Path, ...] = ()
    """Paths that are neither a run directory nor the folder of a sweep."""

    @property
    def against(self) -> str | None:
        """The variant that all sweeps compare the others with; None if there is no such."""
        of_sweeps = {sweep.against for sweep in self.sweeps}
        return of_sweeps.pop() if len(of_sweeps) == 1 else None

    def notes(self, *, unfinished: bool = True) -> list[str]:
        """Return a line about the paths that hold no run, and one about the runs that have not finished."""
        notes = [f"skipped, because it is no run directory: {_listed(self.others)}"] if self.others else []
        if unfinished and self.unfinished:
            notes.append(f"left out, because it has not finished: {_listed(self.unfinished)}")
        return notes


def find_runs(paths: Sequence[Path]) -> FoundRuns:
    """Return the runs in ``paths``: run directories and all trials of sweep folders.

    Raises RunDirectoryError if a path does not exist, or if there is no run in any of them.
    """
    runs: list[Path] = []
    sweeps: list[Sweep] = []
    others: list[Path] = []
    for path in paths:
        if (path / SWEEP_FILE).is_file():
            sweeps.append(read_sweep(path))
            runs += sweeps[-1].trials
        elif (path / "config.yaml").is_file():
            runs.append(path)
        elif path.exists():
            others.append(path)
        else:
            raise RunDirectoryError(f"{path}: no such folder; expected a run directory or the folder of a sweep")
    if not runs:
        raise _no_run(others)
    kept: dict[Path, Path] = {}
    for path in runs:
        kept.setdefault(path.resolve(), path)  # of several names of a run, the first
    return FoundRuns(
        tuple(path for path in kept.values() if RunDirectory(path).has_finished()),
        tuple(path for path in kept.values() if not RunDirectory(path).has_finished()),
        tuple(sweeps),
        tuple(dict.fromkeys(others)),
    )


def read_sweep(folder: Path) -> Sweep:
    """Return the sweep in ``folder``. Raises RunDirectoryError if its record is damaged."""
    record = read_json(folder / SWEEP_FILE)
    try:
        trials = tuple(folder / trial["folder"] for trial in record["trials"])
        return Sweep(folder, record["title"], float(record["scale"]), record["table"], trials, record.get("against"))
    except (KeyError, TypeError, ValueError) as error:
        raise RunDirectoryError(
            f"{folder / SWEEP_FILE}: not the record of a sweep ({type(error).__name__}: {error})"
        ) from error


def _no_run(others: Sequence[Path]) -> RunDirectoryError:
    first = others[0]
    if len(others) > 1:
        return RunDirectoryError(
            f"none of these {len(others)} paths, such as {first}, is a run directory or the folder of a sweep"
        )
    inside = len(list(first.glob("*/config.yaml")))
    hint = f". It holds {inside} run{'s' * (inside > 1)}: give {first}/*" if inside else ""
    return RunDirectoryError(
        f"{first}: not a run directory ({why_no_run(first)}), nor the folder of a sweep (no {SWEEP_FILE}){hint}"
    )


def _listed(paths: Sequence[Path], most: int = 4) -> str:
    rest = len(paths) - most
    return ", ".join(map(str, paths[:most])) + (f" and {rest} more" if rest > 0 else "")
