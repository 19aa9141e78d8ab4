"""Runs that differ only in their seed as one row, mean ± standard deviation, in a block for each order of the tasks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ray_l4.errors import ConfigError
from ray_l4.report.aggregate import AVERAGE, FORGETTING, Statistic, general_columns, scores_of, statistic
from ray_l4.report.finished_run import FinishedRun
from ray_l4.report.markdown import table
from ray_l4.report.results import settings_of
from ray_l4.report.run_result import order_title

STUDENT = 0
"""The student that stands for its run, as in the papers."""
BACKWARD, SECONDS = "backward transfer", "wall s"
DIGITS: Mapping[str, int] = {SECONDS: 0}
"""Digits after the decimal point of columns that do not have one."""
SEEDS_LISTED = 5
"""Largest number of seeds that a row lists."""
SETTINGS_NAMED = 2
"""Largest number of settings that tell two rows of one variant apart."""


@dataclass(frozen=True)
class RunGroup:
    """Runs that differ only in their seed."""

    label: str
    runs: tuple[FinishedRun, ...]

    @property
    def seeds(self) -> str:
        """The seeds, or how many there are."""
        numbers = [str(run.seed) for run in self.runs]
        return ", ".join(numbers) if len(numbers) <= SEEDS_LISTED else f"{len(numbers)} seeds"

    @property
    def name(self) -> str:
        """The label with the seed, or with the number of seeds."""
        return f"{self.label}, " + (f"seed {self.seeds}" if len(self.runs) == 1 else f"{len(self.runs)} seeds")

    def cells(self) -> dict[str, Statistic | None]:
        """Return the statistics of every column."""
        values = [figures_of(run) for run in self.runs]
        return {column: statistic(one[column] for one in values) for column in values[0]}


@dataclass(frozen=True)
class GroupBlock:
    """Groups whose scores can be compared: they learned the same tasks in the same order."""

    title: str
    groups: tuple[RunGroup, ...]

    @property
    def runs(self) -> list[FinishedRun]:
        """All runs of the block."""
        return [run for group in self.groups for run in group.runs]

    def each(self) -> list[RunGroup]:
        """Return a group for every run by itself."""
        return [RunGroup(group.label, (run,)) for group in self.groups for run in group.runs]

    @property
    def has_several_seeds(self) -> bool:
        """Whether any row stands for more than one run."""
        return any(len(group.runs) > 1 for group in self.groups)


def figures_of(run: FinishedRun) -> dict[str, float | None]:
    """Return the figures that a comparison shows of a run: column -> value."""
    return {
        **scores_of(run, STUDENT),
        BACKWARD: run.figure("backward_transfer", STUDENT),
        SECONDS: run.wall_seconds,
    }


def columns_of(tasks: Sequence[str]) -> list[str]:
    """Return the columns of a comparison of runs that learned ``tasks``."""
    return [*tasks, AVERAGE, FORGETTING, BACKWARD, SECONDS]


def text_of(column: str, cell: Statistic | None) -> str:
    """Return the text of a cell."""
    return cell.text(DIGITS.get(column, 1)) if cell else "–"


def grouped(runs: Sequence[FinishedRun]) -> list[GroupBlock]:
    """Return a block for each order of the tasks, in which a group holds the runs that differ only in their seed.

    Blocks, groups and runs keep their order. A second run with a seed and settings that a group has already begins
    another group, so that no seed counts twice. Raises ConfigError if the runs learned different sets of tasks.
    """
    task_sets = {frozenset(run.tasks): order_title(run.tasks) for run in runs}
    if len(task_sets) > 1:
        raise ConfigError(
            f"report: runs that learned different tasks cannot share a table: {'; '.join(sorted(task_sets.values()))}. "
            "Report each set of tasks by itself."
        )
    title = _one_title if len({run.stream for run in runs}) == 1 else _own_title
    blocks: dict[str, list[FinishedRun]] = {}
    for run in runs:
        blocks.setdefault(title(run), []).append(run)
    return [GroupBlock(name, _groups(members)) for name, members in blocks.items()]


def group_table(block: GroupBlock, *, each: bool = False) -> str:
    """Return a block as a Markdown table with a row for each group, or for each run."""
    return table(*group_rows(block.each() if each else block.groups))


def group_rows(groups: Sequence[RunGroup]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of a table of groups."""
    columns = columns_of(groups[0].runs[0].tasks)
    columns += general_columns(run for group in groups for run in group.runs)
    seeds = "seeds" if any(len(group.runs) > 1 for group in groups) else "seed"
    cells = [(group, group.cells()) for group in groups]
    rows = [
        [group.label, group.seeds, *(text_of(name, of_group[name]) for name in columns)] for group, of_group in cells
    ]
    return ["variant", seeds, *columns], rows


def _one_title(run: FinishedRun) -> str:
    return order_title(run.stream)


def _own_title(run: FinishedRun) -> str:
    return run.order


def _groups(runs: Sequence[FinishedRun]) -> tuple[RunGroup, ...]:
    """Return the groups of one block."""
    found: list[tuple[tuple[str, dict[str, object]], list[FinishedRun]]] = []
    for run in runs:
        key = (run.variant, settings_of(run))
        for known, members in found:
            if known == key and all(run.seed != member.seed for member in members):
                members.append(run)
                break
        else:
            found.append((key, [run]))
    settings = [known for (_, known), _ in found]
    variants = [variant for (variant, _), _ in found]
    names = [_told_apart(index, variants, settings) for index in range(len(found))]
    twice = Counter(names)
    return tuple(
        RunGroup(name if twice[name] == 1 else f"{name} ({members[0].path.resolve().name})", tuple(members))
        for name, (_, members) in zip(names, found, strict=True)
    )


def _told_apart(index: int, variants: Sequence[str], settings: Sequence[Mapping[str, object]]) -> str:
    """Return the variant, with the settings in which this group differs from others of the same variant."""
    mine = settings[index]
    others = [other for variant, other in zip(variants, settings, strict=True) if variant == variants[index]]
    keys = [key for key in mine if any(other.get(key) != mine[key] for other in others)]
    return ", ".join([variants[index], *(f"{key} {mine[key]}" for key in keys[:SETTINGS_NAMED])])
