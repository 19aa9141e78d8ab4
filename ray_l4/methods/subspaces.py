"""The number of subspaces of adapters (``model.lora.subspaces``), of which every stage of O-LoRA trains its own."""

from __future__ import annotations

from typing import cast

from ray_l4.config.experiment import ExperimentConfig
from ray_l4.config.model import ModelConfig
from ray_l4.config.text import counted
from ray_l4.errors import ConfigError
from ray_l4.methods.copying import changed
from ray_l4.methods.table import METHODS, get_method

_FEWEST = 8
"""Subspaces that adapters have unless the experiment says otherwise, so that a stream can be extended."""


def with_subspaces(experiment: ExperimentConfig) -> ExperimentConfig:
    """Write down the number of subspaces of all models, if the method uses them, so that config.yaml has it.

    Every model of ``peers.each`` has to be complete. Raises ConfigError if the method uses subspaces and there are no
    adapters, too few subspaces or a weight decay, or if it does not use them and the experiment asks for several.
    """
    models = [experiment.model, *(own.model for own in experiment.peers.each if own.model is not None)]
    if not get_method(experiment.method).needs_adapters:
        _refuse_unused(experiment.method, models)
        return experiment
    if any(model.lora is None for model in models):
        raise ConfigError(
            f"model.lora: {experiment.method} trains adapters, in a subspace of their own for every task, and this "
            "experiment has none. Set model.lora, such as model.lora.rank=8, on a pretrained model (model.name)."
        )
    if experiment.optim.weight_decay:
        raise ConfigError(
            f"optim.weight_decay: {experiment.optim.weight_decay:g} would shrink the adapters of earlier tasks, which "
            f"{experiment.method} leaves as they are. Remove the key, or set it to 0."
        )
    count = max(_FEWEST, len(experiment.stream))
    each = [
        own if own.model is None else changed(own, model=_divided(own.model, count)) for own in experiment.peers.each
    ]
    divided = changed(experiment, model=_divided(experiment.model, count), peers=changed(experiment.peers, each=each))
    _refuse_too_few(divided)
    return cast(ExperimentConfig, divided)


def _divided(model: ModelConfig, count: int) -> ModelConfig:
    """Return the model with ``count`` subspaces, unless it has a number of its own."""
    if model.lora is None or model.lora.subspaces is not None:
        return model
    return cast(ModelConfig, changed(model, lora=changed(model.lora, subspaces=count)))


def _refuse_unused(method: str, models: list[ModelConfig]) -> None:
    if any(model.lora is not None and (model.lora.subspaces or 1) > 1 for model in models):
        known = ", ".join(name for name, row in METHODS.items() if row.needs_adapters)
        raise ConfigError(
            f"model.lora.subspaces: {method} trains the whole adapters in every stage; only these methods train one "
            f"subspace a stage: {known}. Remove the key; for larger adapters, set model.lora.rank."
        )


def _refuse_too_few(experiment: ExperimentConfig) -> None:
    models = [experiment.model, *(own.model for own in experiment.peers.each if own.model is not None)]
    fewest = min(model.lora.subspaces or 1 for model in models if model.lora is not None)
    if fewest < len(experiment.stream):
        raise ConfigError(
            f"model.lora.subspaces: {counted(len(experiment.stream), 'stage')} for {counted(fewest, 'subspace')} of "
            f"the adapters; {experiment.method} needs one for every stage, and their number cannot change in a run "
            f"that has begun. Start one with model.lora.subspaces: {len(experiment.stream)}, or more for later tasks."
        )
