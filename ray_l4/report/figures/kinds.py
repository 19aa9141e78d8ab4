"""The table of figures: the papers' figures, and others, from run directories.

Lines and bars are means over seeds; bands and whiskers are one standard deviation. docs/ANALYSIS.md describes them all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING

from ray_l4.errors import ConfigError, nearest

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ray_l4.report.results import Results

KINDS: Mapping[str, str] = MappingProxyType(
    {
        "learning_curves": "learning_curves",
        "lambda": "lambda_curve",
        "heat_map": "heat_map",
        "forgetting": "forgetting_bars",
        "disagreement": "disagreement",
        "cost": "cost_bars",
        "scores": "scores",
        "differences": "differences",
    }
)
"""Kind of figure -> the module whose ``draw`` draws it. Only that one is loaded: a help text lists the kinds."""


def known_kind(kind: str) -> str:
    """Return ``kind``. Raises ConfigError if there is no such kind of figure."""
    if kind not in KINDS:
        raise ConfigError(f"--kind {kind}: no such kind of figure. {nearest(kind, KINDS)}")
    return kind


def draw(kind: str, results: Results, student: int) -> Figure:
    """Draw a figure of this kind. Raises ConfigError if the runs are not of the kind that it needs."""
    drawer: Callable[[Results, int], Figure] = import_module(f"ray_l4.report.figures.{KINDS[kind]}").draw
    if not any(student in run.students for run in results.runs):
        raise ConfigError(f"--student {student}: no run has this student. Students are counted from 0.")
    return drawer(results, student)
