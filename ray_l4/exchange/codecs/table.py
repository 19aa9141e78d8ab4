"""The table of codecs, and the construction of the one that a profile selects."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from ray_l4.config.cluster import ExchangeConfig
from ray_l4.config.experiment import ExperimentConfig
from ray_l4.exchange.codec_check import check_codec
from ray_l4.exchange.codecs.auto import Auto
from ray_l4.exchange.codecs.dense import Dense
from ray_l4.exchange.codecs.factored import Factored
from ray_l4.exchange.codecs.mean import Mean
from ray_l4.exchange.codecs.payload import Codec
from ray_l4.exchange.codecs.sampled import Sampled
from ray_l4.exchange.codecs.topk import TopK

Builder = Callable[[ExchangeConfig, ExperimentConfig], Codec]

BUILDERS: Mapping[str, Builder] = {
    "auto": lambda exchange, experiment: Auto(_dense(exchange), _factored(experiment)),
    "dense": lambda exchange, experiment: _dense(exchange),
    "factored": lambda exchange, experiment: _factored(experiment),
    "topk": lambda exchange, experiment: TopK(exchange.top_k, experiment.distillation.temperature),
    "sampled": lambda exchange, experiment: Sampled(exchange.samples, experiment.distillation.temperature),
    "mean": lambda exchange, experiment: Mean(experiment.distillation.temperature),
}
"""Value of ``exchange.codec`` -> its constructor."""


def build_codec(exchange: ExchangeConfig, experiment: ExperimentConfig) -> Codec:
    """Build the codec of a run. Raises ConfigError if it cannot serve the experiment."""
    check_codec(exchange, experiment)
    return BUILDERS[exchange.codec](exchange, experiment)


def _dense(exchange: ExchangeConfig) -> Dense:
    return Dense({"float32": torch.float32, "float16": torch.float16}[exchange.precision])


def _factored(experiment: ExperimentConfig) -> Factored:
    return Factored(torch.bfloat16 if experiment.model.precision == "bfloat16" else None)
