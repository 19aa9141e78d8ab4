"""Sharding: how a student's weights are split over its ranks, and how gradients and losses are summed over them.

Every rank learns from its own share of the examples with the denominators of the whole step, so gradients and losses
are summed over the ranks, never averaged.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from ray_l4.learner.blocks import blocks_of
from ray_l4.learner.buckets import buckets
from ray_l4.learner.models import load_bytes, state_bytes, to_bytes
from ray_l4.learner.packing import Arithmetic
from ray_l4.learner.position_logits import PositionLogits

_BUCKET_BYTES = 2**25
"""Size of the gradients summed in one message: large enough for few messages, small enough to need little memory."""


class Sharding(Protocol):
    """The split of a student over its ranks, as one rank sees it.

    Methods that wait for the other ranks raise the process group's RuntimeError if one of them is gone.
    """

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def home(self, device: torch.device) -> torch.device:
        """Return the device on which to build the model for ``wrap``; ``device`` is where the rank learns."""

    def wrap(self, model: PreTrainedModel, arithmetic: Arithmetic = nullcontext) -> PositionLogits:
        """Wrap ``model`` for this rank, reducing it in place to the part that the rank holds.

        ``arithmetic``: context of its matrix products.
        """

    def add_up(self, model: PreTrainedModel, figures: Tensor) -> Tensor:
        """Sum the gradients over the ranks, in place; returns the sum of ``figures`` (float32) over the ranks."""

    def weights(self, model: PreTrainedModel) -> np.ndarray:
        """Return the whole model's weights as safetensors bytes (uint8).

        All ranks must call this; only the first one gets the weights, the others an empty array.
        """

    def load(self, model: PreTrainedModel, weights: np.ndarray, seed: int | None = None) -> None:
        """Load what ``weights`` returned. Raises ModelError if it is damaged or does not fit the model.

        ``seed``: of the rows of tokens that only ``model`` has; None: it must not have any.
        """


@dataclass(frozen=True)
class Alone:
    """A single rank that holds the whole model."""

    rank: int = 0
    size: int = 1

    def home(self, device: torch.device) -> torch.device:
        return device

    def wrap(self, model: PreTrainedModel, arithmetic: Arithmetic = nullcontext) -> PositionLogits:
        return PositionLogits(model, arithmetic=arithmetic)

    def add_up(self, model: PreTrainedModel, figures: Tensor) -> Tensor:
        return figures

    def weights(self, model: PreTrainedModel) -> np.ndarray:
        return to_bytes(model)

    def load(self, model: PreTrainedModel, weights: np.ndarray, seed: int | None = None) -> None:
        load_bytes(model, weights, seed=seed)


ALONE = Alone()


@dataclass(frozen=True)
class DataParallel(Alone):
    """Every rank holds the whole model and makes the same update: sums of gradients are equal bit for bit."""

    group: Any = None
    """The process group of the student's ranks (``workers.rendezvous.join``)."""

    def add_up(self, model: PreTrainedModel, figures: Tensor) -> Tensor:
        total = figures.clone()
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        for bucket in buckets([*gradients, total], _BUCKET_BYTES):
            flat = torch.cat([tensor.flatten() for tensor in bucket])
            self.group.allreduce([flat]).wait()
            for tensor, summed in zip(bucket, flat.split([tensor.numel() for tensor in bucket]), strict=True):
                tensor.copy_(summed.view_as(tensor))
        return total

    def weights(self, model: PreTrainedModel) -> np.ndarray:
        return to_bytes(model) if self.rank == 0 else _NO_WEIGHTS


@dataclass(frozen=True)
class FullyShard:
    """Every rank holds a slice of each weight, gradient and moment (FSDP2, Zhao et al. 2023)."""

    mesh: DeviceMesh
    """The student's ranks, along one dimension."""

    @property
    def rank(self) -> int:
        return self.mesh.get_local_rank()

    @property
    def size(self) -> int:
        return self.mesh.size()

    def home(self, device: torch.device) -> torch.device:
        # The model moves to the device block by block, each sharded there: the whole of it might not fit.
        return torch.device("cpu")

    def wrap(self, model: PreTrainedModel, arithmetic: Arithmetic = nullcontext) -> PositionLogits:
        module = PositionLogits(model, arithmetic=arithmetic)
        module.sharded = True
        for part in (*blocks_of(model), module):
            # The outermost module too: otherwise a forward pass without a backward pass leaves stale weights gathered.
            fully_shard(part, mesh=self.mesh, reshard_after_forward=True)
            if isinstance(part, FSDPModule):  # always true after fully_shard, which changes the class
                part.set_gradient_divide_factor(1.0)
                part.set_force_sum_reduction_for_comms(True)  # gloo knows no other reduction
        return module

    def add_up(self, model: PreTrainedModel, figures: Tensor) -> Tensor:
        """Sum the figures only: FSDP has summed the gradients during the backward pass."""
        total = figures.clone()
        dist.all_reduce(total, group=self.mesh.get_group())
        return total

    def weights(self, model: PreTrainedModel) -> np.ndarray:
        whole: dict[int, Tensor] = {}  # by id(), so that tied weights are gathered once and still share memory
        state = {}
        for name, own in model.state_dict(keep_vars=True).items():
            if id(own) not in whole:
                gathered = _whole(own.detach())
                whole[id(own)] = gathered.cpu() if self.rank == 0 else gathered.new_empty(0)
            state[name] = whole[id(own)]
        return state_bytes(state) if self.rank == 0 else _NO_WEIGHTS

    def load(self, model: PreTrainedModel, weights: np.ndarray, seed: int | None = None) -> None:
        own = model.state_dict()

        def part_of(name: str, tensor: Tensor) -> Tensor:
            mine = own.get(name)
            if not isinstance(mine, DTensor) or mine.shape != tensor.shape:
                return tensor  # ``load_bytes`` reports what is wrong
            # Each rank has read the whole tensor, so none has to receive its slice from another.
            there = tensor.to(self.mesh.device_type)
            return distribute_tensor(there, self.mesh, mine.placements, src_data_rank=None)

        load_bytes(model, weights, part_of, seed)


def clip(weights: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Clip the weights' gradients to a global L2 norm of ``max_norm``, over all ranks; returns the norm before that."""
    parameters = [parameter for parameter in weights if parameter.grad is not None]
    norm = _whole(nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None]))
    nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm


_NO_WEIGHTS = np.empty(0, dtype=np.uint8)


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
