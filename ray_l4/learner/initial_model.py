"""The model that a peer begins its run with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ray_l4.learner.models import build_model
from ray_l4.methods import init_seed, peer_experiment, peer_settings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ray_l4.config.experiment import ExperimentConfig
    from ray_l4.text.tokenizer import TaskTokenizer


def initial_model(experiment: ExperimentConfig, peer: int, tokenizer: TaskTokenizer) -> PreTrainedModel:
    """Build a peer's model as its run begins: pretrained or from scratch, with the rows of the added tokens.

    Raises ModelError if the model cannot be loaded.
    """
    own = peer_experiment(experiment, peer)
    return build_model(own.model, tokenizer, init_seed(own, peer), peer_settings(own, peer).dropout)
