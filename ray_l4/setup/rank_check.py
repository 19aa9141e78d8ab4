"""Checks that students of several ranks can learn an experiment."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ray_l4.config.cluster import ClusterConfig
from ray_l4.config.experiment import ExperimentConfig
from ray_l4.config.traits import CODECS
from ray_l4.errors import ConfigError
from ray_l4.methods import all_models, get_method

if TYPE_CHECKING:
    from ray_l4.setup.setup import Setup


def check_ranks(setup: Setup, cluster: ClusterConfig) -> None:
    """Raise ConfigError if the experiment cannot be learned by students of as many ranks as the profile asks for."""
    if cluster.students.shards_per_student > 1:
        size = min(_batch_size(setup, stage) for stage in range(len(setup.stages)))
        check_rank_settings(setup.experiment, cluster, size)


def check_rank_settings(experiment: ExperimentConfig, cluster: ClusterConfig, size: int | None) -> None:
    """Raise ConfigError as ``check_ranks``, without data. ``size``: examples of a batch; None if not known yet."""
    students = cluster.students
    if students.shards_per_student == 1:
        return
    if size is not None and students.shards_per_student > size:
        raise ConfigError(
            f"students.shards_per_student: {students.shards_per_student} ranks share a batch of {size} examples "
            f"(training.batch_size: {experiment.training.batch_size}), so {students.shards_per_student - size} "
            f"would have nothing to do; expected at most {size} ranks, or a larger batch"
        )
    if experiment.peers.on_peer_loss == "continue":
        raise ConfigError(
            "peers.on_peer_loss: continue cannot be combined with students.shards_per_student: "
            f"{students.shards_per_student}, because the ranks of a student may be at different steps when a peer is "
            "lost; set peers.on_peer_loss: restart"
        )
    if students.sharding == "full":
        _check_full(experiment, cluster)


def _check_full(experiment: ExperimentConfig, cluster: ClusterConfig) -> None:
    method, codec = get_method(experiment.method), cluster.exchange.codec
    needs_whole = {
        f"method: {method.name} compares whole weights or gradients with earlier ones": method.has_guard,
        "distillation.on_policy: students decode their own answers with whole weights": (
            experiment.distillation.on_policy > 0
        ),
        "model.lora puts adapters beside whole weights": any(model.lora for model in all_models(experiment)),
        f"exchange.codec: {codec} sends the whole output layer": CODECS[codec].sends_output_layer,
    }
    for what, applies in needs_whole.items():
        if applies:
            raise ConfigError(
                f"students.sharding: full gives each rank only a slice of the weights, but {what}; set "
                "students.sharding: data"
            )


def _batch_size(setup: Setup, stage: int) -> int:
    """Return the number of examples in a full batch of a stage. Replay can make it larger, never smaller."""
    from ray_l4.text.sampler import auto_batch_size  # loads NumPy, which the settings alone do not need

    size = setup.experiment.at_stage(stage).training.batch_size
    return auto_batch_size(setup.num_examples(stage)) if size == "auto" else size
