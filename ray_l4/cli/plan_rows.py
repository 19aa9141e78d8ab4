"""What ``plan`` prints: the largest row's plan in full, and a line for each of several rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from ray_l4.planning.plan import Advice, Plan


def largest_row(plans: Mapping[str, Plan]) -> str:
    """Return the row that needs most: one that does not fit, if there is one, then by the bytes of its devices."""
    return max(plans, key=lambda label: (not plans[label].fits, _needed(plans[label])))


def print_json(plans: Mapping[str, Plan], largest: str, advice: Advice | None) -> None:
    """Print the largest row's plan as a JSON object, with a summary of every row if there are several."""
    import json

    from ray_l4.planning import view

    row = {"row": largest, "rows": {label: _summary(each) for label, each in plans.items()}}
    typer.echo(json.dumps(view.as_json(plans[largest], advice) | (row if len(plans) > 1 else {})))


def print_tables(plans: Mapping[str, Plan], largest: str, advice: Advice | None, experiment: str) -> None:
    """Print a line for every row if there are several, then the largest row's plan in full."""
    from rich.console import Console

    from ray_l4.planning import view

    console = Console(highlight=False)
    for line in _lines(plans, largest) if len(plans) > 1 else ():
        console.print(line, markup=False, soft_wrap=True)
    for part in view.tables(plans[largest], advice, experiment):
        console.print(part)


def _needed(plan: Plan) -> int:
    return max((device.needed for device in plan.devices), default=0)


def _summary(plan: Plan) -> dict[str, object]:
    return {"fits": plan.fits, "needed": _needed(plan), "problems": list(plan.problems)}


def _lines(plans: Mapping[str, Plan], largest: str) -> list[str]:
    """Return a line for every row of the table, and one that says which is printed in full."""
    from ray_l4.planning.units import size_text

    width = max(map(len, plans))
    lines = [
        f"{label:<{width}}  needs {size_text(_needed(plan))} on its largest device: "
        f"{'fits' if plan.fits else plan.problems[0]}"
        for label, plan in plans.items()
    ]
    return [*lines, "", f"Of {len(plans)} rows, {largest} needs most:", ""]
