"""The penalty of EWC and MAS: what earlier tasks need is held where it was, in proportion to how much they need it."""

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
    """``strength * sum over parameters of importance * (theta - anchor)^2``. Without any tensor it is 0 everywhere.

    This is eq. 4 of MAS (Aljundi et al. 2018) and the references' form for both methods (REFERENCE.md#regularisers, strength 1). EWC
    (Kirkpatrick et al. 2017, eq. 3) writes lambda / 2 in front of the same sum, so its lambda is twice the strength.

    Unlike the references, which take a step of their own after Adam's, the papers add the penalty to the loss: call
    ``add_gradient`` after the backward pass and before clipping.

    Parameters that the penalty does not know are free: new names, and rows added at the end of a known tensor (a grown
    embedding). One that it knows and does not find, or finds in another shape, is a ModelError in every method, and so
    is, on construction, an importance that is not a finite number from 0 up.
    """

    importance: Mapping[str, Tensor] = field(default_factory=dict)
    """By name of the parameter, in its shape; on the device of the model."""
    anchor: Mapping[str, Tensor] = field(default_factory=dict)
    """Weights at the end of the latest task, same names and shapes."""

    def __post_init__(self) -> None:
        lone = sorted(self.importance.keys() ^ self.anchor.keys())
        if lone:
            raise ModelError(f"penalty: {lone[0]!r} has an importance or an anchor; expected both")
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
                    "finite; the task it was measured on may have diverged: try a lower optim.lr"
                )

    def value(self, parameters: Mapping[str, Tensor], strength: float) -> Tensor:
        """The penalty at ``parameters``, a scalar with a graph, in float32 or wider."""
        terms = (self.importance[name] * self._drift(parameters, name) ** 2 for name in sorted(self.importance))
        return strength * sum((term.sum() for term in terms), start=_zero(parameters))

    @torch.no_grad()
    def add_gradient(self, parameters: Mapping[str, Tensor], strength: float) -> Tensor:
        """Add ``2 * strength * importance * (theta - anchor)`` to every ``.grad``; returns the value, detached.

        A ``.grad`` of None counts as zero. No graph is built; two temporaries of one parameter's size live at a time.
        """
        total = _zero(parameters)
        # Sorted, so that one that was read from bytes adds up in the same order, to the last bit.
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
        """The penalty after one more task: importances added up, the anchor moved to (a copy of) ``parameters``.

        importance: of the task just learned, for all of ``parameters`` that are to be held from now on.

        MAS accumulates so. EWC's paper keeps one penalty per task, each with its own anchor; but the weights after
        task t were themselves held near the earlier anchors, so that this counts earlier tasks several times, and one
        anchor at the latest weights is what its derivation gives (Huszar 2018).
        """
        total = {name: values.clone() for name, values in importance.items()}
        for name, earlier in self.importance.items():
            _known_part(total, name, earlier).add_(earlier)
        anchor = {name: _known_part(parameters, name, values).detach().clone() for name, values in total.items()}
        return QuadraticPenalty(total, anchor)

    def to_bytes(self) -> np.ndarray:
        """Importance and anchor in safetensors format as a flat uint8 array."""
        parts = {"importance": self.importance, "anchor": self.anchor}
        tensors = {
            f"{part}.{name}": tensor.detach().cpu().contiguous()
            for part, by_name in parts.items()
            for name, tensor in by_name.items()
        }
        return np.frombuffer(safetensors.torch.save(tensors, metadata={"format": "pt"}), dtype=np.uint8)

    @classmethod
    def from_bytes(cls, data: np.ndarray, device: torch.device | str = "cpu") -> QuadraticPenalty:
        """What ``to_bytes`` wrote, on ``device``. Raises ModelError if it is damaged or something else."""
        try:
            tensors = safetensors.torch.load(data.tobytes())
        except SafetensorError as error:
            raise ModelError(f"penalty of {data.nbytes} bytes is damaged: {error}") from error
        parts: dict[str, dict[str, Tensor]] = {"importance": {}, "anchor": {}}
        for key, tensor in tensors.items():
            part, _, name = key.partition(".")
            if part not in parts:
                raise ModelError(f"penalty holds a tensor {key!r}; expected importance.NAME or anchor.NAME only")
            parts[part][name] = tensor.to(device)
        return cls(**parts)

    def _drift(self, parameters: Mapping[str, Tensor], name: str) -> Tensor:
        """How far the parameter has moved from its anchor; widened first, as bfloat16 has few digits for it."""
        return at_least_float32(_known_part(parameters, name, self.importance[name])) - self.anchor[name]


def _known_part(tensors: Mapping[str, Tensor], name: str, known: Tensor) -> Tensor:
    """A view of ``tensors[name]`` without the rows that it has beyond those of ``known``."""
    tensor = tensors.get(name)
    if tensor is None:
        raise ModelError(f"penalty: {name!r} is missing; expected a model with all parameters of the earlier tasks")
    shape = tensor.shape
    if tensor.ndim != known.ndim or shape[1:] != known.shape[1:] or shape[:1] < known.shape[:1]:
        raise ModelError(f"penalty: {name!r} has the shape {tuple(shape)}; expected {tuple(known.shape)}, or more rows")
    return tensor[_block(known)]


def _zero(parameters: Mapping[str, Tensor]) -> Tensor:
    """Where the sum over parameters starts: on their device even if the penalty is empty."""
    return torch.zeros((), device=next((parameter.device for parameter in parameters.values()), None))


def _block(known: Tensor) -> tuple[slice, ...]:
    """Index of the leading block of this shape; for a scalar the empty index, which selects the scalar."""
    return tuple(slice(length) for length in known.shape)
