"""Checks that need both the experiment and the profile."""

from __future__ import annotations

from ray_l4.config.cluster import ClusterConfig
from ray_l4.config.experiment import ExperimentConfig
from ray_l4.errors import ConfigError
from ray_l4.exchange.codec_check import check_codec
from ray_l4.methods import complete, graph_of


def check_exchange(experiment: ExperimentConfig, cluster: ClusterConfig) -> None:
    """Raise ConfigError if the experiment's students cannot learn from predictions as the profile sends them."""
    check_codec(cluster.exchange, experiment)
    graph = graph_of(experiment)
    if not cluster.exchange.codec_traits.reduces or not graph.edges:
        return
    distillation = experiment.distillation
    together = distillation.schedule == "simultaneous" and not distillation.asks_teachers
    if graph.frozen or graph.edges != complete(graph.size).edges or not together:
        raise ConfigError(
            "exchange.codec: mean is one sum over all students, so each has to learn from all others at every step; "
            "expected peers.topology: complete, distillation.schedule: simultaneous, distillation.batches: shared and "
            "no distillation.on_policy. Or use another codec."
        )
