"""The runs behind a table or figure: from run directories, or from the folder of a sweep."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ray_l4.config.experiment import WITHOUT_EFFECT
from ray_l4.config.protocol import NO_REFERENCE
from ray_l4.errors import ConfigError, RunDirectoryError, nearest
from ray_l4.report.aggregate import FORGETTING, OVER_EPOCHS, comparable_tasks
from ray_l4.report.finished_run import FinishedRun
from ray_l4.report.run_search import FoundRuns, Sweep, find_runs

_MAY_DIFFER = (*WITHOUT_EFFECT, "seed", "variant", "stream", "teachers.run")
"""Settings in which the runs of one row may differ: of ``stream`` the order, but not the settings of its tasks."""


@dataclass(frozen=True)
class Results:
    """Runs that can be compared, and the sweeps that they come from."""

    runs: tuple[FinishedRun, ...]
    tasks: tuple[str, ...]
    """The tasks that all runs learned, in the order of the first run."""
    found: FoundRuns = field(default_factory=FoundRuns)
    """Where the runs come from, and what is left out."""
    over_epochs: bool = False
    """Whether forgetting starts from the best score after any epoch, rather than after any task."""
    asked_against: str | None = None
    """The variant that the user wants the others to be compared with, or ``NO_REFERENCE``; None to leave it to the
    sweeps."""

    @property
    def forgetting(self) -> str:
        """The column that holds the forgetting of a run."""
        return OVER_EPOCHS if self.over_epochs else FORGETTING

    @property
    def against(self) -> str | None:
        """The variant that the others are compared with, run by run: as asked for, else that of all sweeps, if any."""
        if self.asked_against is not None:
            return None if self.asked_against == NO_REFERENCE else self.asked_against
        return self.found.against

    @property
    def sweeps(self) -> tuple[Sweep, ...]:
        """The sweeps that the runs come from."""
        return self.found.sweeps

    @property
    def unfinished(self) -> tuple[Path, ...]:
        """Runs that are left out because they have not finished."""
        return self.found.unfinished

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


def load(
    folders: Sequence[Path], *, partial: bool = False, over_epochs: bool = False, against: str | None = None
) -> Results:
    """Read the runs in ``folders``, which are run directories or folders of sweeps.

    With ``partial``, runs that have not finished are left out. So is, in any case, what is neither a run nor a sweep.
    ``against``: see ``Results.asked_against``.

    Raises:
        RunDirectoryError: there is no finished run, one has not finished, or something cannot be read.
        ConfigError: the runs cannot be compared (other tasks, scales or settings, or a seed twice), or with
            ``over_epochs``, one has no scores of single epochs; or no run is of the variant ``against``.
    """
    found = find_runs(folders)
    if not found.finished or (found.unfinished and not partial):
        raise _unfinished(found)
    runs = tuple(FinishedRun.open(path) for path in found.finished)
    tasks = comparable_tasks(runs, [str(path) for path in found.finished])
    _refuse_mixed(runs, found.sweeps)
    for run in runs if over_epochs else ():
        run.scores_of_epochs(0)
    results = Results(runs, tasks, found, over_epochs, against)
    if against not in (None, NO_REFERENCE, *results.variants()):
        raise ConfigError(
            f"--against {against}: no run is of this variant. {nearest(str(against), results.variants())}"
        )
    return results


def _unfinished(found: FoundRuns) -> RunDirectoryError:
    """Return the error about the first sweep, or else the first run, that has not finished."""
    for sweep in found.sweeps:
        missing = [trial for trial in sweep.trials if trial in found.unfinished]
        if missing:
            return RunDirectoryError(
                f"{sweep.path}: {len(missing)} of {len(sweep.trials)} trials of the sweep have not finished, such as "
                f"{missing[0]}. Run the sweep again, which skips finished trials, or leave these out: --partial"
            )
    first, more = found.unfinished[0], len(found.unfinished) - 1
    others = f" (and {more} more run{'s' * (more > 1)}), or leave out unfinished runs: --partial" if more else ""
    return RunDirectoryError(f"{first}: the run did not finish. Resume it: ray-l4 resume {first}{others}")


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
        mine, theirs = settings_of(run), settings_of(other)
        for key in sorted(mine.keys() | theirs.keys()):
            if mine.get(key) != theirs.get(key):
                raise ConfigError(
                    f"{other.path} and {run.path} are both {run.variant} but differ in {key}: {theirs.get(key)} and "
                    f"{mine.get(key)}. Runs of one row may differ only in the seed; give one of them another name with "
                    "'variant' in its experiment file, or leave it out."
                )


def settings_of(run: FinishedRun) -> dict[str, object]:
    """Return every setting that decides a run's result, except the seed and names: ``group.key`` -> value."""
    return dict(_settings(run))


def _settings(run: FinishedRun) -> Iterator[tuple[str, object]]:
    for name, value in _named_settings(run.experiment.model_dump(mode="json")):
        if not any(fnmatchcase(name, pattern) for pattern in _MAY_DIFFER):
            yield name, value


def _named_settings(record: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    for task in record["stream"]:
        yield from ((f"stream.{task['name']}.{key}", value) for key, value in task.items())
    for key, value in record.items():
        inside = value.items() if isinstance(value, dict) else [(None, value)]
        yield from ((key if name is None else f"{key}.{name}", each) for name, each in inside)
