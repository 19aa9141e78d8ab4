"""The ranks of one student: what they can be asked to learn, and how they come together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Literal

import torch
import torch.distributed as dist
from ray.util import get_node_ip_address
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from ray_l4.config.cluster import ClusterConfig
from ray_l4.errors import ConfigError, PeerLostError
from ray_l4.learner.sharding import ALONE, DataParallel, FullyShard, Sharding
from ray_l4.setup.setup import Setup
from ray_l4.setup.tokenizer_check import all_models
from ray_l4.text.sampler import auto_batch_size
from ray_l4.workers.rendezvous import Meeting, join


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
        f"method: {setup.method.name} compares whole weights or gradients with earlier ones": (
            setup.method.guard != "none"
        ),
        "model.lora puts adapters beside whole weights": any(model.lora for model in all_models(experiment)),
        "exchange.codec: factored sends the whole output layer": codec == "factored",
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


def unite(meeting: Meeting | None, kind: Literal["data", "full"], device: torch.device) -> Sharding:
    """Meet the student's other ranks; ``ALONE`` if there are none. Raises PeerLostError if they do not come in time."""
    if meeting is None:
        return ALONE
    if kind == "data":
        return DataParallel(meeting.rank, meeting.size, join(meeting, device, get_node_ip_address()))
    return FullyShard(_mesh(meeting, device))


@contextmanager
def fellow_ranks(peer: int) -> Iterator[None]:
    """What happens within waits for the student's other ranks: raises PeerLostError if one of them is gone."""
    try:
        yield
    except RuntimeError as error:
        # Gloo has no class of its own for what goes wrong on the way.
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise PeerLostError(f"student {peer}: one of its ranks is gone: {str(error).splitlines()[0]}") from error


def _mesh(meeting: Meeting, device: torch.device) -> DeviceMesh:
    """A device mesh stands on PyTorch's default group. What there was of one is left first."""
    limit = timedelta(seconds=meeting.timeout)
    if dist.is_initialized():
        dist.destroy_process_group()
    try:
        place = dist.TCPStore(meeting.host, meeting.port, is_master=False, wait_for_workers=False, timeout=limit)
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=dist.PrefixStore(meeting.name, place),
            rank=meeting.rank,
            world_size=meeting.size,
            timeout=limit,
        )
        return init_device_mesh(device.type, (meeting.size,), mesh_dim_names=("shard",))
    except (RuntimeError, dist.DistError) as error:
        raise PeerLostError(
            f"rank {meeting.rank} of {meeting.size} of a student did not meet the others at {meeting.host}:"
            f"{meeting.port} within {meeting.timeout:g} s: {str(error).splitlines()[0]}"
        ) from error
