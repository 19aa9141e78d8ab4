"""Variants compared with one of them, run by run: differences over pairs of runs of the same order and seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean, median

from ray_l4.metrics.bootstrap import mean_interval
from ray_l4.report.aggregate import AVERAGE, FIGURES, FORGETTING, row_label
from ray_l4.report.run_result import RunResult
from ray_l4.store.run_directory import TOGETHER

BETTER, WORSE, NOT_SHOWN = "better", "worse", "no difference shown"

EXACT_DIGITS = 9
"""Digits of a difference after the decimal point: what is beyond them is rounding, which must not decide a verdict."""

Pair = tuple[Sequence[RunResult], Sequence[RunResult]]
"""Runs of a variant and of the reference. A side with several runs counts with their mean."""


@dataclass(frozen=True)
class Difference:
    """The differences of one column, each the variant's value minus that of the reference."""

    values: tuple[float, ...]
    """One for each pair in which both are defined; at least one."""
    lower_is_better: bool = False

    @property
    def mean(self) -> float:
        """Mean over the pairs."""
        return fmean(self.values)

    @cached_property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of the mean; None with too few pairs."""
        return mean_interval(self.values)

    @property
    def verdict(self) -> str | None:
        """Whether the variant is better or worse than the reference, as far as the interval shows; None without one."""
        if self.interval is None:
            return None
        low, high = self.interval
        if low <= 0 <= high:
            return NOT_SHOWN
        return BETTER if (high < 0) == self.lower_is_better else WORSE


@dataclass(frozen=True)
class PairedRow:
    """A variant compared with the reference."""

    variant: str
    label: str
    """The variant, and ``together`` where all its students together are compared."""
    pairs: int
    """Number of pairs."""
    differences: Mapping[str, Difference | None]
    """Column -> its differences; None if it is undefined in every pair."""
    time_ratio: float | None
    """Median over the pairs of the variant's wall time divided by that of the reference; None without pairs."""
    by_seed: bool
    """Whether one of the two has no order, so that a pair is a seed, and the other counts with its mean over orders."""


@dataclass(frozen=True)
class PairedTable:
    """All variants compared with one of them, over all orders of the tasks."""

    against: str
    """The variant that the others are compared with."""
    columns: tuple[str, ...]
    rows: tuple[PairedRow, ...]
    orders: int
    """Number of orders of the tasks among the runs."""
    has_reference: bool
    """Whether any run is one of ``against``."""


def compare(runs: Sequence[RunResult], against: str, student: int = 0, forgetting: str = FORGETTING) -> PairedTable:
    """Return the paired differences of every variant to ``against``, for one student of each run.

    A variant whose students were scored together has a second row, in which all of them together are compared with the
    one ``student`` of ``against``; ``against`` itself has that row too.

    A pair is the same order and seed under both variants. If one of the two learns in no order, it is the same seed,
    and the other one counts with its mean over its orders: paired with each order by itself, a run without order would
    count several times, as if its chance were new each time. ``forgetting`` is ``FORGETTING`` or ``OVER_EPOCHS``.
    Runs without ``student`` are left out; a variant that shares no pair with ``against`` has a row without values.
    """
    of_variant: dict[str, list[RunResult]] = {run.variant: [] for run in runs}
    for run in runs:
        if student in run.students:
            of_variant[run.variant].append(run)
    reference = of_variant.get(against, [])
    columns = (AVERAGE, forgetting)
    rows = []
    for variant, own in of_variant.items():
        if variant != against:
            rows.append(_row(variant, own, reference, (student, student), columns))
        if together := [run for run in own if TOGETHER in run.rows]:
            rows.append(_row(variant, together, reference, (TOGETHER, student), columns))
    orders = len({run.order for run in runs if run.learns_in_order})
    return PairedTable(against, columns, tuple(rows), orders, bool(reference))


def _row(
    variant: str,
    own: Sequence[RunResult],
    reference: Sequence[RunResult],
    compared: tuple[int, int],
    columns: tuple[str, str],
) -> PairedRow:
    """Compare a row of one variant's runs (a student, or ``TOGETHER``) with one of the reference's: ``compared``."""
    by_seed = len({run.learns_in_order for run in (*own, *reference)}) > 1
    pairs = _pairs(own, reference, by_seed)
    ratios = [_mean_seconds(mine) / seconds for mine, theirs in pairs if (seconds := _mean_seconds(theirs))]
    return PairedRow(
        variant,
        row_label(variant, compared[0]) if compared[0] == TOGETHER else variant,
        len(pairs),
        {column: _difference(pairs, column, compared, lower_is_better=column != AVERAGE) for column in columns},
        median(ratios) if ratios else None,
        by_seed,
    )


def _pairs(own: Sequence[RunResult], reference: Sequence[RunResult], by_seed: bool) -> list[Pair]:
    mine, theirs = _by_key(own, by_seed), _by_key(reference, by_seed)
    return [(mine[key], theirs[key]) for key in mine if key in theirs]


def _by_key(runs: Sequence[RunResult], by_seed: bool) -> dict[tuple[str, int], list[RunResult]]:
    """Return the runs by order and seed, or by seed alone."""
    found: dict[tuple[str, int], list[RunResult]] = {}
    for run in runs:
        found.setdefault(("" if by_seed else run.order, run.seed), []).append(run)
    return found


def _difference(
    pairs: Sequence[Pair], column: str, compared: tuple[int, int], *, lower_is_better: bool
) -> Difference | None:
    both = [(_mean(mine, column, compared[0]), _mean(theirs, column, compared[1])) for mine, theirs in pairs]
    values = tuple(
        round(mine - theirs, EXACT_DIGITS) for mine, theirs in both if mine is not None and theirs is not None
    )
    return Difference(values, lower_is_better) if values else None


def _mean(runs: Sequence[RunResult], column: str, student: int) -> float | None:
    """Return the mean of a column over the runs of one side of a pair; None if one of them does not have it."""
    values = [run.figure(FIGURES[column], student) for run in runs]
    known = [value for value in values if value is not None]
    return fmean(known) if len(known) == len(values) else None


def _mean_seconds(runs: Sequence[RunResult]) -> float:
    return fmean(run.wall_seconds for run in runs)
