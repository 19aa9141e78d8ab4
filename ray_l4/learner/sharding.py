"""A student on one rank or several: what each of them holds, and how their sums become those of the whole step.

Every rank learns from its own slice of the examples with the denominators of the whole step, so gradients and losses
are summed over the ranks, never averaged.
"""

from __future__ import annotations

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

from ray_l4.learner.buckets import buckets
from ray_l4.learner.models import load_bytes, state_bytes, to_bytes
from ray_l4.learner.position_logits import PositionLogits

_BUCKET_BYTES = 2**25
"""Gradients that are summed in one message: few messages, and little memory beside the gradients themselves."""


class Sharding(Protocol):
    """How a student is spread over its ranks, as one of them sees it.

    Whatever waits for the other ranks raises RuntimeError, of the process group, if one of them is gone.
    """

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def home(self, device: torch.device) -> torch.device:
        """Where the model is built that ``wrap`` is given, for a rank that learns on ``device``."""

    def wrap(self, model: PreTrainedModel) -> PositionLogits:
        """The model as this rank runs it; ``model`` itself is changed to what the rank holds of it."""

    def add_up(self, model: PreTrainedModel, figures: Tensor) -> Tensor:
        """Gradients become those of the whole step, in place; gives the sum over the ranks of ``figures``, float32."""

    def weights(self, model: PreTrainedModel) -> np.ndarray:
        """The whole model's weights as safetensors bytes (uint8). All ranks are asked; the first one answers."""

    def load(self, model: PreTrainedModel, weights: np.ndarray) -> None:
        """Go on from what ``weights`` gave. Raises ModelError if it is damaged or does not fit."""


@dataclass(frozen=True)
class Alone:
    """One rank, which holds and does everything."""

    rank: int = 0
    size: int = 1

    def home(self, device: torch.device) -> torch.device:
        return device

    def wrap(self, model: PreTrainedModel) -> PositionLogits:
        return PositionLogits(model)

    def add_up(self, model: PreTrainedModel, figures: Tensor) -> Tensor:
        return figures

    def weights(self, model: PreTrainedModel) -> np.ndarray:
        return to_bytes(model)

    def load(self, model: PreTrainedModel, weights: np.ndarray) -> None:
        load_bytes(model, weights)


ALONE = Alone()


@dataclass(frozen=True)
class DataParallel(Alone):
    """Every rank holds the whole model. All get the same sum of gradients, to the bit, and make the same update."""

    group: Any = None
    """The student's own process group (``exchange.groups.join``)."""

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
        return to_bytes(model) if self.rank == 0 else _NOT_ASKED


@dataclass(frozen=True)
class FullyShard:
    """Every rank holds a slice of all weights, gradients and moments (FSDP2, Zhao et al. 2023)."""

    mesh: DeviceMesh
    """One axis: the student's ranks."""

    @property
    def rank(self) -> int:
        return self.mesh.get_local_rank()

    @property
    def size(self) -> int:
        return self.mesh.size()

    def home(self, device: torch.device) -> torch.device:
        # Block by block it goes to the device and is cut there: all of it may have no room.
        return torch.device("cpu")

    def wrap(self, model: PreTrainedModel) -> PositionLogits:
        module = PositionLogits(model)
        for part in (*_blocks(model), module):
            # The outermost part too: what a forward pass without a backward pass leaves there would go stale.
            fully_shard(part, mesh=self.mesh, reshard_after_forward=True)
            if isinstance(part, FSDPModule):  # it is now
                part.set_gradient_divide_factor(1.0)
                part.set_force_sum_reduction_for_comms(True)  # gloo knows no other reduction
        return module

    def add_up(self, model: PreTrainedModel, figures: Tensor) -> Tensor:
        """Gradients were summed where the backward pass gave them."""
        total = figures.clone()
        dist.all_reduce(total, group=self.mesh.get_group())
        return total

    def weights(self, model: PreTrainedModel) -> np.ndarray:
        whole: dict[int, Tensor] = {}  # by identity: tied weights are gathered once, and share their memory as before
        state = {}
        for name, own in model.state_dict(keep_vars=True).items():
            if id(own) not in whole:
                gathered = _whole(own.detach())
                whole[id(own)] = gathered.cpu() if self.rank == 0 else gathered.new_empty(0)
            state[name] = whole[id(own)]
        return state_bytes(state) if self.rank == 0 else _NOT_ASKED

    def load(self, model: PreTrainedModel, weights: np.ndarray) -> None:
        own = model.state_dict()

        def part_of(name: str, tensor: Tensor) -> Tensor:
            mine = own.get(name)
            if not isinstance(mine, DTensor) or mine.shape != tensor.shape:
                return tensor  # ``load_bytes`` says what is wrong with it
            # Each rank has read all of it, so none has to send its slice to another.
            there = tensor.to(self.mesh.device_type)
            return distribute_tensor(there, self.mesh, mine.placements, src_data_rank=None)

        load_bytes(model, weights, part_of)


def clip(model: nn.Module, max_norm: float) -> Tensor:
    """Clip the gradients to the global L2 norm ``max_norm``, over all ranks that hold slices; gives the norm before."""
    parameters = [parameter for parameter in model.parameters() if parameter.grad is not None]
    norm = _whole(nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None]))
    nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm


_NOT_ASKED = np.empty(0, dtype=np.uint8)


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _blocks(model: PreTrainedModel) -> list[nn.Module]:
    """The layers that transformers never splits over devices; none if the architecture does not name them."""
    names = set(model._no_split_modules or ())
    return [module for module in model.modules() if type(module).__name__ in names]
