"""The codec that a profile asks for."""

from __future__ import annotations

import torch

from ray_l4.config.cluster import ExchangeConfig
from ray_l4.config.experiment import ExperimentConfig
from ray_l4.exchange.codecs.dense import Dense
from ray_l4.exchange.codecs.payload import Codec


def build_codec(exchange: ExchangeConfig, experiment: ExperimentConfig) -> Codec:
    """The codec of a run."""
    return Dense({"float32": torch.float32, "float16": torch.float16}[exchange.precision])
