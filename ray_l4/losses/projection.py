"""A-GEM: projection of a step's gradient to the closest one that does not increase the loss on stored examples.

Chaudhry et al. 2019, eq. 10 and 11: minimise ``|g' - g|^2`` subject to ``g' . r >= 0``, where r is the gradient on a
batch from the memory of all earlier tasks. GEM (REFERENCE.md#regularisers) has one such constraint per task, which
requires a quadratic programme; A-GEM has a single constraint and therefore a closed form.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from ray_l4.errors import ModelError
from ray_l4.losses.nll import at_least_float32


@torch.no_grad()
def project_(gradients: Sequence[Tensor], references: Sequence[Tensor]) -> Tensor:
    """Update g in place: ``g <- g - (g . r) / (r . r) * r`` if ``g . r < 0``.

    Inner products are computed over all parameters, tensor by tensor, without a flat copy of the model.

    Args:
        gradients: g, one tensor per parameter.
        references: r, in the same order and shapes. If r is zero, or so small that its squares underflow in float32, g
            is unchanged. Otherwise only the direction of r matters, so it need not be clipped.

    Returns:
        g . r before the update, a float64 scalar: negative if and only if the two conflicted. It stays on the device,
        so there is no synchronisation.

    Raises:
        ValueError: the shapes differ.
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
    """Apply ``project_`` to the ``.grad`` of ``parameters``, where None counts as zero.

    Args:
        reference: by name, from ``take_gradients``. A parameter without a reference keeps its gradient.

    Returns:
        As ``project_``.

    Raises:
        ModelError: the reference contains a parameter that the model does not have.
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
    """Return every ``.grad`` by name without copying, and set it to None as ``zero_grad`` does."""
    taken = {name: parameter.grad for name, parameter in parameters.items() if parameter.grad is not None}
    for name in taken:
        parameters[name].grad = None
    return taken


def _inner(left: Iterable[Tensor], right: Iterable[Tensor]) -> Tensor:
    """Return the inner product over all tensors in float64, as float32 has too few digits for so many terms."""
    products = (
        (at_least_float32(a) * at_least_float32(b)).sum(dtype=torch.float64) for a, b in zip(left, right, strict=True)
    )
    return sum(products, start=torch.zeros((), dtype=torch.float64))
