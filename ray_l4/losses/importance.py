"""Importance of each parameter for the task just learned, as measured by EWC and MAS (REFERENCE.md#regularisers)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from ray_l4.losses.nll import at_least_float32


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the trainable parameters by name; a shared one (tied embeddings) only under its first name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def fisher_diagonal(parameters: Mapping[str, Tensor], log_likelihoods: Iterable[Tensor]) -> dict[str, Tensor]:
    """Return EWC's importance: the mean over examples of ``(d log p(y | x, theta) / d theta)^2``.

    Kirkpatrick et al. 2017. With labels of the data this is the empirical Fisher diagonal, as is usual for EWC; with
    labels drawn from the model it estimates the Fisher diagonal itself. The reference implementations instead square
    the gradient of a whole batch, in which opposite gradients cancel and which depends on the batch size.

    Args:
        parameters: by name, leaves that require a gradient. Their ``.grad`` is neither read nor changed.
        log_likelihoods: one scalar with its autograd graph per *example*, in nats (either sign): the sum over the
            example's tokens, from a model in evaluation mode. A generator that runs the model on one example at a time
            keeps only one graph alive.

    Returns:
        By name, a float32 or wider tensor in the shape of the parameter.

    Raises:
        ValueError: there is no example.
    """
    return _mean_over_examples(parameters, log_likelihoods, torch.square)


def output_sensitivity(parameters: Mapping[str, Tensor], output_norms: Iterable[Tensor]) -> dict[str, Tensor]:
    """Return MAS's importance: the mean over examples of ``|d norm / d theta|`` (Aljundi et al. 2018, eq. 2 and 3).

    Args:
        parameters: as for ``fisher_diagonal``.
        output_norms: ``squared_output_norm`` of each example, with its autograd graph; it needs no labels.

    Returns and raises as ``fisher_diagonal``.
    """
    return _mean_over_examples(parameters, output_norms, torch.abs)


def squared_output_norm(logits_NV: Tensor) -> Tensor:
    """Return the squared L2 norm of the predicted distribution, averaged over the positions of one example.

    The output whose sensitivity MAS measures. MAS leaves the choice of the output open; probabilities are used here, as
    in the reference implementations, because a constant can be added to a row of logits, which changes their norm but
    no prediction. The reference implementations also average over the vocabulary, which divides this value by its size
    (REFERENCE.md#regularisers).

    Args:
        logits_NV: (num_positions, vocab) of one example, at least one row. The reference implementations use one row,
            that of ANS.
    """
    return torch.softmax(at_least_float32(logits_NV), dim=-1).square().sum(dim=-1).mean()


def _mean_over_examples(
    parameters: Mapping[str, Tensor], scalars: Iterable[Tensor], transform: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    """Return for every parameter the mean over ``scalars`` of ``transform(gradient of the scalar)``."""
    leaves = list(parameters.values())
    totals = [torch.zeros_like(at_least_float32(leaf), requires_grad=False) for leaf in leaves]
    num_examples = 0
    for scalar in scalars:
        # A parameter that this example does not use has no gradient, which counts as zero.
        gradients = torch.autograd.grad(scalar, leaves, allow_unused=True)
        for total, gradient in zip(totals, gradients, strict=True):
            if gradient is not None:
                total.add_(transform(at_least_float32(gradient)))
        num_examples += 1
    if not num_examples:
        raise ValueError(
            "the importance of parameters is a mean over examples; expected at least one example, got none"
        )
    return {name: total.div_(num_examples) for name, total in zip(parameters, totals, strict=True)}
