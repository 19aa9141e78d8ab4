"""What a user may set: typed, checked and documented in one place."""

from ray_l4.config.cluster import ClusterConfig
from ray_l4.config.experiment import ExperimentConfig
from ray_l4.config.loading import dump_yaml, load_cluster, load_experiment

__all__ = ["ClusterConfig", "ExperimentConfig", "dump_yaml", "load_cluster", "load_experiment"]
