"""The papers' figures from run directories.

::

    python -m analysis.figures SWEEP_OR_RUN_DIR... --kind learning_curves --out FILE.png

Lines and bars are means over seeds; bands and whiskers are one standard deviation. The suffix of the file decides the
format (.png, .svg, .pdf). docs/ANALYSIS.md describes each kind.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from analysis.command import exit_status
from analysis.figures import cost_bars, disagreement, forgetting_bars, heat_map, lambda_curve, learning_curves
from analysis.figures.style import save
from analysis.results import Results, load
from ray_l4.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS: Mapping[str, Callable[[Results, int], Figure]] = MappingProxyType(
    {
        "learning_curves": learning_curves.draw,
        "lambda": lambda_curve.draw,
        "heat_map": heat_map.draw,
        "forgetting": forgetting_bars.draw,
        "disagreement": disagreement.draw,
        "cost": cost_bars.draw,
    }
)
"""Kind of figure -> function that draws it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m analysis.figures", description="Draw finished runs.")
    parser.add_argument("folders", metavar="SWEEP_OR_RUN_DIR", nargs="+", type=Path)
    parser.add_argument("--kind", required=True, choices=KINDS, help="kind of figure")
    parser.add_argument("--out", metavar="FILE.png", required=True, type=Path, help="figure to write, or .svg, .pdf")
    parser.add_argument("--student", metavar="N", type=int, default=0, help="student to show, counted from 0")
    parser.add_argument("--partial", action="store_true", help="leave out trials of a sweep that have not finished")
    options = parser.parse_args(arguments)

    def work() -> None:
        results = load(options.folders, partial=options.partial)
        if not any(options.student in run.students for run in results.runs):
            raise ConfigError(f"--student {options.student}: no run has this student. Students are counted from 0.")
        save(KINDS[options.kind](results, options.student), options.out)
        print(options.out)

    return exit_status(work)


if __name__ == "__main__":
    sys.exit(main())
