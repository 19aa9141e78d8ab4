"""A-GEM: the gradient that is closest to a step's own and does not raise the loss on stored examples.

Chaudhry et al. 2019, eq. 10 and 11: minimise ``|g' - g|^2`` subject to ``g' . r >= 0``, where r is the gradient on a
batch from the memory of all earlier tasks. GEM (REFERENCE.md#regularisers) has one such constraint per task and a quadratic programme;
A-GEM has one in all, and therefore a closed form.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from ray_l4.errors import ModelError
from ray_l4.losses.nll import at_least_float32


@torch.no_grad()
def project_(gradients: Sequence[Tensor], references: Sequence[Tensor]) -> Tensor:
    """``g <- g - (g . r) / (r . r) * r`` if ``g . r < 0``, else g as it is, in place; returns g . r as it was.

    gradients, references: g and r, each as one tensor per parameter, in the same order and shapes. A reference of
    zeros, or one so small that its squares vanish in float32, changes nothing. Otherwise only the direction of r
    counts, so it need not be clipped.

    The result is a float64 scalar: negative if and only if the two conflicted. It stays on the device; nothing waits.
    Inner products run over all parameters together, tensor by tensor, with no flat copy of the model. Raises ValueError
    if the shapes differ.
    """
    for gradient, reference in zip(gradients, references, strict=True):
        if gradient.shape != reference.shape:
            raise ValueError(
                f"projection: a gradient has shape {tuple(gradient.shape)}, its reference {tuple(reference.shape)}; "
                "expected the same parameters in the same order"
            )
    inner = _inner(gradients, references)
    square = _inner(references, references)
    coefficient = torch.where((inner < 0) & (square > 0), inner / square, 0.0)
    for gradient, reference in zip(gradients, references, strict=True):
        gradient.sub_(coefficient * at_least_float32(reference))
    return inner


@torch.no_grad()
def project_gradients(parameters: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> Tensor:
    """``project_`` on the ``.grad`` of ``parameters``, where None counts as zero.

    reference: by name, from ``take_gradients``. A parameter without a reference keeps its gradient.

    Raises ModelError if the reference names a parameter that is not there.
    """
    unknown = sorted(reference.keys() - parameters.keys())
    if unknown:
        raise ModelError(f"projection: a reference gradient for {unknown[0]!r}, which the model does not have")
    gradients = []
    for name in reference:
        parameter = parameters[name]
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        gradients.append(parameter.grad)
    return project_(gradients, list(reference.values()))


def take_gradients(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every ``.grad`` by name, without a copy; the parameters have none afterwards, as after ``zero_grad``."""
    taken = {name: parameter.grad for name, parameter in parameters.items() if parameter.grad is not None}
    for name in taken:
        parameters[name].grad = None
    return taken


def _inner(left: Iterable[Tensor], right: Iterable[Tensor]) -> Tensor:
    """Inner product over all tensors; float64, because a model has more terms than float32 has digits for."""
    products = (
        (at_least_float32(a) * at_least_float32(b)).sum(dtype=torch.float64) for a, b in zip(left, right, strict=True)
    )
    return sum(products, start=torch.zeros((), dtype=torch.float64))
