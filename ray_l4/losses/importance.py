"""How much each parameter matters to a task that was just learned: the measures of EWC and of MAS (REFERENCE.md#regularisers)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from ray_l4.losses.nll import at_least_float32


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that training moves, by name; a shared one (tied embeddings) stands under its first name alone."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def fisher_diagonal(parameters: Mapping[str, Tensor], log_likelihoods: Iterable[Tensor]) -> dict[str, Tensor]:
    """EWC's importance: the mean over examples of ``(d log p(y | x, theta) / d theta)^2`` (Kirkpatrick et al. 2017).

    parameters: by name, each a leaf that requires a gradient. Their ``.grad`` is neither read nor changed.
    log_likelihoods: one scalar with its graph per *example*, in nats (either sign): the sum over the example's tokens,
    from a model in evaluation mode. A generator that runs the model on one example at a time keeps one graph alive.

    With the labels of the data this is the empirical Fisher diagonal, as usual for EWC; with labels drawn from the
    model it estimates the Fisher diagonal itself. The references square the gradient of a whole batch instead: there
    examples that pull in opposite directions cancel, and the result depends on the batch size.

    Returns float32 or wider tensors in the shapes of the parameters. Raises ValueError if there is no example.
    """
    return _mean_over_examples(parameters, log_likelihoods, torch.square)


def output_sensitivity(parameters: Mapping[str, Tensor], output_norms: Iterable[Tensor]) -> dict[str, Tensor]:
    """MAS's importance: the mean over examples of ``|d norm / d theta|`` (Aljundi et al. 2018, eq. 2 and 3).

    output_norms: ``squared_output_norm`` per example, with its graph. It needs no labels. Everything else is as in
    ``fisher_diagonal``.
    """
    return _mean_over_examples(parameters, output_norms, torch.abs)


def squared_output_norm(logits_NV: Tensor) -> Tensor:
    """Squared L2 norm of the predicted distribution, averaged over the N positions of one example: what MAS watches.

    logits_NV: (num_positions, vocab) of one example, at least one row. The references take one row, the one at ANS.

    MAS leaves open what a network's output is. Here it is the probabilities, as in the references, because logits are
    free up to a constant per row: their norm changes where no prediction does. The references average over the
    vocabulary too, which is this divided by its size (REFERENCE.md#regularisers).
    """
    return torch.softmax(at_least_float32(logits_NV), dim=-1).square().sum(dim=-1).mean()


def _mean_over_examples(
    parameters: Mapping[str, Tensor], scalars: Iterable[Tensor], transform: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    """Mean over ``scalars`` of ``transform(gradient of the scalar)``, for every parameter."""
    leaves = list(parameters.values())
    totals = [torch.zeros_like(at_least_float32(leaf), requires_grad=False) for leaf in leaves]
    num_examples = 0
    for scalar in scalars:
        # A parameter that this example does not reach has no gradient, which is to say zero.
        gradients = torch.autograd.grad(scalar, leaves, allow_unused=True)
        for total, gradient in zip(totals, gradients, strict=True):
            if gradient is not None:
                total.add_(transform(at_least_float32(gradient)))
        num_examples += 1
    if not num_examples:
        raise ValueError("the importance of parameters is a mean over examples; expected at least one, got none")
    return {name: total.div_(num_examples) for name, total in zip(parameters, totals, strict=True)}
