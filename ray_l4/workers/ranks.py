"""The ranks of one student: what they can learn, and how they form a process group."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Literal

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from ray_l4.config.cluster import ClusterConfig
from ray_l4.config.traits import CODECS
from ray_l4.errors import ConfigError, PeerLostError
from ray_l4.exchange.collective import is_lost_connection
from ray_l4.learner.sharding import ALONE, DataParallel, FullyShard, Sharding
from ray_l4.setup.setup import Setup
from ray_l4.setup.tokenizer_check import all_models
from ray_l4.text.sampler import auto_batch_size
from ray_l4.workers.process import address
from ray_l4.workers.rendezvous import Rendezvous, join


def check_ranks(setup: Setup, cluster: ClusterConfig) -> None:
    """Raise ConfigError if students of the profile's ranks cannot learn what the experiment asks for."""
    students = cluster.students
    if students.shards_per_student == 1:
        return
    size = min(_batch_size(setup, stage) for stage in range(len(setup.stages)))
    if students.shards_per_student > size:
        raise ConfigError(
            f"students.shards_per_student: {students.shards_per_student} ranks share a batch of {size} examples "
            f"(training.batch_size: {setup.experiment.training.batch_size}), so {students.shards_per_student - size} "
            f"would have nothing to do; expected at most {size} ranks, or a larger batch"
        )
    if setup.experiment.peers.on_peer_loss == "continue":
        raise ConfigError(
            "peers.on_peer_loss: continue does not go together with students.shards_per_student: "
            f"{students.shards_per_student}, because the ranks of a student may be at different steps when a peer is "
            "lost; set peers.on_peer_loss: restart"
        )
    if students.sharding == "full":
        _check_full(setup, cluster)


def _check_full(setup: Setup, cluster: ClusterConfig) -> None:
    experiment, codec = setup.experiment, cluster.exchange.codec
    needs_whole = {
        f"method: {setup.method.name} compares whole weights or gradients with earlier ones": (setup.method.has_guard),
        "model.lora puts adapters beside whole weights": any(model.lora for model in all_models(experiment)),
        f"exchange.codec: {codec} sends the whole output layer": CODECS[codec].sends_output_layer,
    }
    for what, applies in needs_whole.items():
        if applies:
            raise ConfigError(
                f"students.sharding: full leaves every rank a slice of the weights, but {what}; set "
                "students.sharding: data"
            )


def _batch_size(setup: Setup, stage: int) -> int:
    """Examples of a full batch of a stage; replayed ones can make it larger, never smaller."""
    size = setup.experiment.training.batch_size
    return auto_batch_size(setup.num_examples(stage)) if size == "auto" else size


def sharding_of(rendezvous: Rendezvous | None, kind: Literal["data", "full"], device: torch.device) -> Sharding:
    """Meet the student's other ranks and return how it is split over them; ``ALONE`` if there are none.

    Raises PeerLostError if they do not come in time.
    """
    if rendezvous is None:
        return ALONE
    if kind == "data":
        return DataParallel(rendezvous.rank, rendezvous.size, join(rendezvous, device, address()))
    return FullyShard(_mesh(rendezvous, device))


@contextmanager
def other_ranks(peer: int) -> Iterator[None]:
    """Within this context the student's other ranks are waited for. Raises PeerLostError if one of them is gone."""
    try:
        yield
    except RuntimeError as error:
        if not is_lost_connection(error):
            raise
        raise PeerLostError(f"student {peer}: one of its ranks is gone: {str(error).splitlines()[0]}") from error


def _mesh(rendezvous: Rendezvous, device: torch.device) -> DeviceMesh:
    """Build a device mesh on PyTorch's default group, which a mesh needs. An earlier default group is left first."""
    limit = timedelta(seconds=rendezvous.timeout)
    if dist.is_initialized():
        dist.destroy_process_group()
    try:
        store = dist.TCPStore(rendezvous.host, rendezvous.port, is_master=False, wait_for_workers=False, timeout=limit)
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=dist.PrefixStore(rendezvous.name, store),
            rank=rendezvous.rank,
            world_size=rendezvous.size,
            timeout=limit,
        )
        return init_device_mesh(device.type, (rendezvous.size,), mesh_dim_names=("shard",))
    except (RuntimeError, dist.DistError) as error:
        raise PeerLostError(
            f"rank {rendezvous.rank} of {rendezvous.size} of a student did not meet the others at {rendezvous.host}:"
            f"{rendezvous.port} within {rendezvous.timeout:g} s: {str(error).splitlines()[0]}"
        ) from error
