"""Changed copies of experiments, which are immutable."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray_l4.config.experiment import ExperimentConfig


def changed(record: Any, **values: object) -> Any:
    """Return a copy with other values, validated like a new record, that keeps track of which values were set.

    Raises pydantic.ValidationError if the values are inconsistent.
    """
    return type(record).model_validate({name: getattr(record, name) for name in record.model_fields_set} | values)


def uncompiled(experiment: ExperimentConfig) -> ExperimentConfig:
    """Return the experiment with a model whose blocks are not compiled (``model.compile``)."""
    same: ExperimentConfig = changed(experiment, model=changed(experiment.model, compile=False))
    return same
