"""Captions of tables and figures: subject, scale, models, training and seeds."""

from __future__ import annotations

from collections.abc import Iterable

from ray_l4.report.facts import model_name
from ray_l4.report.results import Results


def title(results: Results, subject: str) -> str:
    """Return ``subject``, with the scale of the runs unless they have the protocol's full size."""
    scale = results.scale
    return subject if scale in (None, 1.0) else f"{subject}, scaled to {scale:g} of the examples and epochs"


def name(results: Results) -> str:
    """Return a name for the runs: the titles of their sweeps, which say the scale, or the number of runs."""
    count = len(results.runs)
    return "; ".join(sweep.title for sweep in results.sweeps) or f"{count} run{'s' * (count > 1)}"


def setting(results: Results) -> str:
    """Return sweeps, models, training and seeds of the runs in one line."""
    runs = results.runs
    return "; ".join(
        [
            *(sweep.title for sweep in results.sweeps),
            _listed("model", (model_name(run.experiment.model) for run in runs)),
            _listed("training examples per task", (task.train for run in runs for task in run.experiment.stream)),
            _listed("epochs", (epochs for run in runs for epochs in run.epochs)),
            _listed("seeds", sorted(run.seed for run in runs)),
        ]
    )


def _listed(name: str, values: Iterable[object]) -> str:
    """Return the name and the distinct values, or the range of more than three numbers."""
    distinct = list(dict.fromkeys(values))
    numbers = [value for value in distinct if isinstance(value, int)]
    if len(distinct) > 3 and len(numbers) == len(distinct):
        return f"{name}: {min(numbers)} to {max(numbers)}"
    return f"{name}: {', '.join(map(str, distinct))}"
