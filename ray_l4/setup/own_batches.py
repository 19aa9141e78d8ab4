"""Whether students that teach each other need batches of their own, so that they do not stay equal."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from ray_l4.config.experiment import ExperimentConfig
from ray_l4.learner.model_config import pretrained_config
from ray_l4.methods import graph_of, init_seed, peer_experiment, peer_settings
from ray_l4.methods.copying import changed

_OF_OTHER_HEADS = ("summary", "classifier")
"""Dropout of heads that a language model does not have."""


def with_batches(experiment: ExperimentConfig) -> ExperimentConfig:
    """Return the experiment with ``distillation.batches`` decided, if it is ``auto``.

    Raises ModelError if the configuration of a pretrained model cannot be loaded.
    """
    distillation = experiment.distillation
    if distillation.batches != "auto":
        return experiment
    batches = "own" if _stay_equal(experiment) else "shared"
    decided: ExperimentConfig = changed(experiment, distillation=changed(distillation, batches=batches))
    return decided


def as_begun(experiment: ExperimentConfig) -> ExperimentConfig:
    """Return the experiment of a run that goes on: one that recorded no decision began with shared batches."""
    distillation = experiment.distillation
    if distillation.batches != "auto":
        return experiment
    same: ExperimentConfig = changed(experiment, distillation=changed(distillation, batches="shared"))
    return same


def _stay_equal(experiment: ExperimentConfig) -> bool:
    """Return whether a student and its teacher would stay equal with the same batches."""
    graph = graph_of(experiment)
    mutual = [edge for edge in graph.edges if edge[0] not in graph.frozen]
    if not mutual or experiment.distillation.schedule != "simultaneous" or experiment.training.batch_budget is not None:
        return False
    beginnings = {peer: _beginning(experiment, peer) for peer in graph.students}
    alike = {student for teacher, student in mutual if beginnings[teacher] == beginnings[student]}
    return any(not _has_dropout(experiment, student) for student in alike)


def _beginning(experiment: ExperimentConfig, peer: int) -> Hashable:
    """Return what decides a student's first weights and its learning rate."""
    own = peer_experiment(experiment, peer)
    drawn = own.model.from_scratch is not None or own.model.lora is not None or experiment.peers.init == "own"
    seed = init_seed(experiment, peer) if drawn else None
    return own.model.model_dump_json(), own.optim.model_dump_json(), seed


def _has_dropout(experiment: ExperimentConfig, peer: int) -> bool:
    model, rate = peer_experiment(experiment, peer).model, peer_settings(experiment, peer).dropout
    if model.lora is not None and model.lora.dropout > 0:
        return True
    if model.from_scratch is not None:
        return model.from_scratch.dropout > 0
    return rate > 0 if rate is not None else _drops(pretrained_config(str(model.name), model.trust_custom_code))


def _drops(config: Any) -> bool:
    """Return whether a pretrained model's configuration has a dropout rate above 0."""
    rates: Mapping[str, object] = config.get_text_config(decoder=True).to_dict()
    return any(
        isinstance(rate, int | float) and not isinstance(rate, bool) and rate > 0
        for name, rate in rates.items()
        if ("dropout" in name or name.endswith("pdrop")) and not name.startswith(_OF_OTHER_HEADS)
    )
