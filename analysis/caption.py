"""What stands over a table or figure: what it shows, at which scale, from which models and how many runs."""

from __future__ import annotations

from collections.abc import Iterable

from analysis.results import Results
from ray_l4.config.model import ModelConfig


def title(results: Results, what: str) -> str:
    """``what``, and the scale of the sweep if it is not the protocol's full size."""
    scale = results.scale
    return what if scale in (None, 1.0) else f"{what}, scaled to {scale:g} of the examples and epochs"


def name(results: Results) -> str:
    """What the runs are called: the titles of their sweeps, which say the scale, or how many there are."""
    count = len(results.runs)
    return "; ".join(sweep.title for sweep in results.sweeps) or f"{count} run{'s' * (count > 1)}"


def setting(results: Results) -> str:
    """Name of the sweep, models, training and seeds of the runs in one line."""
    runs = results.runs
    return "; ".join(
        [
            *(sweep.title for sweep in results.sweeps),
            _listed("model", (model_name(run.experiment.model) for run in runs)),
            _listed("training examples of a task", (task.train for run in runs for task in run.experiment.stream)),
            _listed("epochs", (run.experiment.training.epochs for run in runs)),
            _listed("seeds", sorted(run.seed for run in runs)),
        ]
    )


def model_name(model: ModelConfig) -> str:
    """A model as people name it."""
    scratch = model.from_scratch
    name = f"{scratch.layers}-layer GPT-2 of width {scratch.width} from scratch" if scratch else str(model.name)
    return name if model.lora is None else f"{name} with LoRA of rank {model.lora.rank}"


def _listed(name: str, values: Iterable[object]) -> str:
    """Name and distinct values; many numbers as their range."""
    distinct = list(dict.fromkeys(values))
    numbers = [value for value in distinct if isinstance(value, int)]
    if len(distinct) > 3 and len(numbers) == len(distinct):
        return f"{name}: {min(numbers)} to {max(numbers)}"
    return f"{name}: {', '.join(map(str, distinct))}"
