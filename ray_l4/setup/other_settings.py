"""An experiment with other settings than its file's, and one for a model that belongs to none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ray_l4.config.document import Document
from ray_l4.config.experiment import ExperimentConfig
from ray_l4.config.loading import apply_overrides, experiment_of
from ray_l4.methods import resolved
from ray_l4.methods.copying import changed


def default_experiment(model: str, tasks: Sequence[str], overrides: Sequence[str]) -> ExperimentConfig:
    """Return an experiment with the default settings for a model; ``overrides`` have the form ``KEY=VALUE``."""
    stream = [{"name": name, "train": "all"} for name in dict.fromkeys(tasks or ["none"])]
    tree: dict[str, object] = {"method": "finetune", "stream": stream, "model": {"name": model}}
    document = Document("command line", Path.cwd(), tree)
    apply_overrides(document, overrides)
    return experiment_of(document)


def with_model(experiment: ExperimentConfig, name: str) -> ExperimentConfig:
    """Return the experiment with another pretrained model, which all peers begin with."""
    each = [changed(peer, model=None) for peer in experiment.peers.each]
    own = changed(experiment.model, name=name, from_scratch=None)
    return changed(experiment, model=own, peers=changed(experiment.peers, each=each))


def with_sections(
    experiment: ExperimentConfig, sections: Mapping[str, Mapping[str, object]], seed: int | None
) -> ExperimentConfig:
    """Return the resolved experiment with other values.

    Args:
        sections: by section of the experiment, its keys and their values; ``model`` changes that of every peer.
        seed: the run seed; None keeps the experiment's.
    """
    experiment = resolved(experiment)
    for section, values in sections.items():
        experiment = changed(experiment, **{section: changed(getattr(experiment, section), **values)})
    own = sections.get("model", {})
    each = [
        peer if peer.model is None else changed(peer, model=changed(peer.model, **own))
        for peer in experiment.peers.each
    ]
    experiment = changed(experiment, peers=changed(experiment.peers, each=each))
    return experiment if seed is None else changed(experiment, seed=seed)
