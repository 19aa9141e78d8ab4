"""Steps whose loss or gradient is not finite: whether one may be skipped, and the error of one that may not."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import TYPE_CHECKING

from ray_l4.errors import NonFiniteError

if TYPE_CHECKING:
    from ray_l4.config.experiment import TrainingConfig
    from ray_l4.learner.peer_model import PeerModel


def skips(training: TrainingConfig, num_skipped: int) -> bool:
    """Return whether a student that has skipped ``num_skipped`` steps of the stage may skip one more."""
    return training.non_finite == "skip" and num_skipped < training.most_skipped


def non_finite_error(learner: PeerModel, stage: int, step: int, figures: Mapping[str, float]) -> NonFiniteError:
    """Return the error of a step that may not be skipped."""
    training = learner.experiment.training
    wrong = ", ".join(f"{name} {value:g}" for name, value in figures.items() if not isfinite(value))
    spent = f", and {training.most_skipped} steps of this stage were skipped already (training.most_skipped)"
    where = f"student {learner.peer}, stage {stage}, step {step}"
    message = f"{where}: {wrong}: not finite{spent if training.non_finite == 'skip' else ''}"
    return NonFiniteError(message, learner.peer, stage, step)
