"""The quadratic penalty of EWC and MAS, which holds parameters in proportion to their importance for earlier tasks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from ray_l4.errors import ModelError
from ray_l4.losses.nll import at_least_float32


@dataclass(frozen=True, eq=False)
class QuadraticPenalty:
    """``strength * sum over parameters of importance * (theta - anchor)^2``; without tensors, 0 everywhere.

    This is eq. 4 of MAS (Aljundi et al. 2018), and the reference implementations' form for both methods
    (REFERENCE.md#regularisers, strength 1). EWC (Kirkpatrick et al. 2017, eq. 3) multiplies the same sum by lambda / 2,
    so its lambda is twice the strength.

    As in the papers, the penalty is part of the loss: call ``add_gradient`` after the backward pass and before
    clipping. The reference implementations instead take a separate step after Adam's.

    Parameters that the penalty does not contain are free: new names, and rows added at the end of a known tensor (a
    grown embedding).

    Raises:
        ModelError: on construction, an importance that is not finite or negative, or does not match its anchor; in
            every method, a known parameter that is missing or has another shape.
    """

    importance: Mapping[str, Tensor] = field(default_factory=dict)
    """By name and in the shape of the parameter, on the device of the model."""
    anchor: Mapping[str, Tensor] = field(default_factory=dict)
    """Weights at the end of the latest task, with the same names and shapes."""

    def __post_init__(self) -> None:
        lone = sorted(self.importance.keys() ^ self.anchor.keys())
        if lone:
            raise ModelError(f"penalty: {lone[0]!r} has only one of importance and anchor; expected both")
        for name, importance in self.importance.items():
            anchor = self.anchor[name]
            if anchor.shape != importance.shape:
                raise ModelError(
                    f"penalty: {name!r} has an importance of shape {tuple(importance.shape)} and an anchor of shape "
                    f"{tuple(anchor.shape)}; expected the same"
                )
            if not (importance.is_floating_point() and anchor.is_floating_point()):
                raise ModelError(
                    f"penalty: {name!r} has an importance of type {importance.dtype} and an anchor of type "
                    f"{anchor.dtype}; expected floating point"
                )
            if not bool((importance.isfinite() & (importance >= 0)).all() & anchor.isfinite().all()):
                raise ModelError(
                    f"penalty: {name!r} has an importance that is negative or not finite, or an anchor that is not "
                    "finite; training on the task it was measured on may have diverged. Try a lower optim.lr"
                )

    def value(self, parameters: Mapping[str, Tensor], strength: float) -> Tensor:
        """Return the penalty at ``parameters``, a float32 or wider scalar with an autograd graph."""
        terms = (self.importance[name] * self._drift(parameters, name) ** 2 for name in sorted(self.importance))
        return strength * sum((term.sum() for term in terms), start=_zero(parameters))

    @torch.no_grad()
    def add_gradient(self, parameters: Mapping[str, Tensor], strength: float) -> Tensor:
        """Add ``2 * strength * importance * (theta - anchor)`` to every ``.grad``. Returns the penalty, detached.

        A ``.grad`` of None counts as zero. No autograd graph is built; at most two temporaries of one parameter's size
        are alive at a time.
        """
        total = _zero(parameters)
        # Sorted, so that a penalty read from bytes is summed in the same order, with the same result to the last bit.
        for name, importance in sorted(self.importance.items()):
            drift = self._drift(parameters, name)
            pull = importance * drift
            parameter = parameters[name]
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad[_block(importance)].add_(pull, alpha=2 * strength)
            total = total + pull.mul_(drift).sum()
        return strength * total

    def merged(self, importance: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> QuadraticPenalty:
        """Return the penalty after one more task: importances added, anchor moved to (a copy of) ``parameters``.

        Args:
            importance: importance for the task just learned, of all parameters to be held from now on.
            parameters: the weights after that task.

        MAS accumulates like this. EWC's paper keeps one penalty per task, each with its own anchor. But the weights
        after task t were themselves held near the earlier anchors, so that form counts earlier tasks several times; the
        derivation of EWC leads to a single anchor at the latest weights (Huszar 2018).
        """
        total = {name: values.clone() for name, values in importance.items()}
        for name, earlier in self.importance.items():
            _known_part(total, name, earlier).add_(earlier)
        anchor = {name: _known_part(parameters, name, values).detach().clone() for name, values in total.items()}
        return QuadraticPenalty(total, anchor)

    def to_bytes(self) -> np.ndarray:
        """Serialise importance and anchor to safetensors format, as a flat uint8 array."""
        parts = {"importance": self.importance, "anchor": self.anchor}
        tensors = {
            f"{part}.{name}": tensor.detach().cpu().contiguous()
            for part, by_name in parts.items()
            for name, tensor in by_name.items()
        }
        return np.frombuffer(safetensors.torch.save(tensors, metadata={"format": "pt"}), dtype=np.uint8)

    @classmethod
    def from_bytes(cls, data: np.ndarray, device: torch.device | str = "cpu") -> QuadraticPenalty:
        """Restore a penalty from ``to_bytes`` on ``device``. Raises ModelError if the bytes are damaged."""
        try:
            tensors = safetensors.torch.load(data.tobytes())
        except SafetensorError as error:
            raise ModelError(f"penalty of {data.nbytes} bytes is damaged: {error}") from error
        parts: dict[str, dict[str, Tensor]] = {"importance": {}, "anchor": {}}
        for key, tensor in tensors.items():
            part, _, name = key.partition(".")
            if part not in parts:
                raise ModelError(f"penalty contains a tensor {key!r}; expected only importance.NAME and anchor.NAME")
            parts[part][name] = tensor.to(device)
        return cls(**parts)

    def _drift(self, parameters: Mapping[str, Tensor], name: str) -> Tensor:
        """Return the parameter minus its anchor; widened first, as bfloat16 has too few digits for the difference."""
        return at_least_float32(_known_part(parameters, name, self.importance[name])) - self.anchor[name]


def _known_part(tensors: Mapping[str, Tensor], name: str, known: Tensor) -> Tensor:
    """Return a view of ``tensors[name]`` without its rows beyond those of ``known``.

    Raises ModelError if the tensor is missing or has another shape.
    """
    tensor = tensors.get(name)
    if tensor is None:
        raise ModelError(f"penalty: {name!r} is missing; expected a model with all parameters of the earlier tasks")
    shape = tensor.shape
    if tensor.ndim != known.ndim or shape[1:] != known.shape[1:] or shape[:1] < known.shape[:1]:
        raise ModelError(f"penalty: {name!r} has the shape {tuple(shape)}; expected {tuple(known.shape)}, or more rows")
    return tensor[_block(known)]


def _zero(parameters: Mapping[str, Tensor]) -> Tensor:
    """Return a zero to start a sum with, on the device of the parameters even if the penalty is empty."""
    return torch.zeros((), device=next((parameter.device for parameter in parameters.values()), None))


def _block(known: Tensor) -> tuple[slice, ...]:
    """Return the index of the leading block of this shape; for a scalar the empty index, which selects it."""
    return tuple(slice(length) for length in known.shape)
