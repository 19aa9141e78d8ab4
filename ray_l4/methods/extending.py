"""Experiments whose streams go on with further items."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import ValidationError

from ray_l4.config.experiment import ExperimentConfig
from ray_l4.config.stream import TaskConfig
from ray_l4.errors import ConfigError
from ray_l4.methods.copying import changed
from ray_l4.methods.table import get_method


def extended(experiment: ExperimentConfig, items: Sequence[TaskConfig]) -> ExperimentConfig:
    """Return an experiment with further ``items`` at the end of its stream.

    Raises ConfigError if the method learns all tasks at once, or if an item does not fit the stream.
    """
    if get_method(experiment.method).kind.joint:
        raise ConfigError(
            f"{experiment.method} learns all tasks at once, so a run of it cannot be extended. Start a new run with "
            "all tasks, or choose a method that learns one task after another."
        )
    try:
        longer: ExperimentConfig = changed(experiment, stream=[*experiment.stream, *items])
    except ValidationError as error:
        problems = "; ".join(str(problem.get("ctx", {}).get("error", problem["msg"])) for problem in error.errors())
        raise ConfigError(f"the stream cannot be extended: {problems}") from None
    return longer
