"""The state of a stage under way as bytes: what one rank of a peer needs to continue after its latest step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch.distributed.tensor import DTensor

from ray_l4.errors import ModelError, first_line

if TYPE_CHECKING:
    from torch import Tensor

    from ray_l4.learner.stage_run import StageRun

_POSITION = "position"
"""Entry with the numbers below."""
_POSITION_KEYS = ("stage", "next_step", "num_skipped")
_WEIGHT = "weight"
"""What stands before the name of a parameter for its values; for the optimiser's entries, it is their own name."""


def to_bytes(run: StageRun) -> np.ndarray:
    """Return the state of a stage in safetensors format (uint8): position, trainable weights, optimiser state.

    A rank of a sharded model returns its own slices. Raises PeerError while a step is under way.
    """
    state = run.state_dict()
    tensors: dict[str, Tensor] = {_POSITION: torch.tensor([state[key] for key in _POSITION_KEYS])}
    for name, parameter in _trainable(run).items():
        tensors[f"{_WEIGHT}:{name}"] = _own(parameter)
        for key, value in run.optimizer.state.get(parameter, {}).items():
            tensors[f"{key}:{name}"] = _own(value)
    return np.frombuffer(safetensors.torch.save(tensors), dtype=np.uint8)


def restore(run: StageRun, data: np.ndarray) -> None:
    """Continue ``run`` from what ``to_bytes`` returned for the same stage of the same peer.

    Raises ModelError if ``data`` is damaged or does not fit the model, PeerError if it belongs to another stage.
    """
    try:
        tensors = safetensors.torch.load(data.tobytes())
        position = dict(zip(_POSITION_KEYS, tensors.pop(_POSITION).tolist(), strict=True))
        entries: dict[str, dict[str, Tensor]] = {}
        for full_name, tensor in tensors.items():
            key, _, name = full_name.partition(":")
            entries.setdefault(name, {})[key] = tensor
    except (SafetensorError, KeyError, ValueError) as error:
        raise ModelError(f"a state of {data.nbytes} bytes is damaged: {first_line(error)}") from error
    parameters = _trainable(run)
    if entries.keys() != parameters.keys() or any(
        own[_WEIGHT].shape != _local(parameters[name]).shape for name, own in entries.items()
    ):
        raise ModelError("a state does not fit the model: it has other weights")
    optimizer = run.optimizer.state_dict()
    trained = [parameter for group in run.optimizer.param_groups for parameter in group["params"]]
    of_parameter = {id(parameters[name]): own for name, own in entries.items()}
    moments = {
        index: {key: _like(parameter, value) for key, value in of_parameter[id(parameter)].items() if key != _WEIGHT}
        for index, parameter in enumerate(trained)
    }
    state = {index: own for index, own in moments.items() if own}
    run.load_state_dict({**position, "optimizer": optimizer | {"state": state}})
    with torch.no_grad():
        for name, own in entries.items():
            _local(parameters[name]).copy_(own[_WEIGHT])


def _trainable(run: StageRun) -> dict[str, Tensor]:
    """Return name -> parameter; parameters that are tied appear once."""
    return {name: own for name, own in run.learner.model.named_parameters() if own.requires_grad}


def _local(tensor: Tensor) -> Tensor:
    """Return this rank's slice of a sharded tensor; any other tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _own(tensor: Tensor) -> Tensor:
    return _local(tensor.detach()).cpu().contiguous()


def _like(parameter: Tensor, value: Tensor) -> Tensor:
    """Shard a rank's slice of a moment as its parameter is; a count of steps is no slice."""
    if isinstance(parameter, DTensor) and value.dim():
        return DTensor.from_local(
            value.to(parameter.device),
            parameter.device_mesh,
            parameter.placements,
            run_check=False,
            shape=parameter.shape,
            stride=parameter.stride(),
        )
    return value
