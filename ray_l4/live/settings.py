"""The settings of a live service: those of its run, with what the command line changes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ray_l4.config.document import Document
from ray_l4.config.experiment import ExperimentConfig, LiveConfig
from ray_l4.config.loading import validate
from ray_l4.config.problems import takes_text


def live_settings(experiment: ExperimentConfig, overrides: Sequence[str]) -> LiveConfig:
    """Return ``live`` of an experiment with ``overrides`` (``min_examples=5``). Raises ConfigError if one is wrong."""
    document = Document("--set live", Path.cwd(), experiment.live.model_dump(mode="json", exclude_unset=True))
    for text in overrides:
        document.override(text, partial(takes_text, LiveConfig))
    return validate(LiveConfig, document)
