"""Check that the codec of a profile can serve an experiment, from their settings alone."""

from __future__ import annotations

from ray_l4.config.cluster import ExchangeConfig
from ray_l4.config.experiment import ExperimentConfig
from ray_l4.errors import ConfigError


def check_codec(exchange: ExchangeConfig, experiment: ExperimentConfig) -> None:
    """Raise ConfigError if the codec does not send what the experiment's distillation needs."""
    codec, direction = exchange.codec, experiment.distillation.direction
    if exchange.precision != "float32" and not exchange.codec_traits.narrowable:
        raise ConfigError(
            f"exchange.precision: {exchange.precision} applies to log-probabilities over the whole vocabulary, which "
            f"exchange.codec: {codec} does not send; set exchange.precision: float32, or exchange.codec: dense"
        )
    if direction != "forward" and exchange.codec_traits.forward_only:
        raise ConfigError(
            f"distillation.direction: {direction} needs the logarithm of the teacher's probability of every token, "
            f"which exchange.codec: {codec} does not provide; set distillation.direction: forward, or exchange.codec: "
            "dense, factored, auto or topk"
        )
