"""A plain implementation of the objective with all options: one sequence, head and position at a time.

Source: REFERENCE.md#lamol-loss, #word-kd-loss and #l4-choices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

ANS_WEIGHT = 5.0


@dataclass(frozen=True)
class Rule:
    """Options that the papers leave open, with the defaults of ``l4``."""

    weight: float = 0.2
    temperature: float = 2.0
    direction: str | float = "forward"
    average: str = "token"
    examples: str = "current"
    means: str = "pooled"
    labels_on_current: bool = True
    lm_weight: float = 0.25


def sequences(row: dict[str, Any], tok: Any) -> dict[str, tuple[list[int], list[int]]]:
    """Return inputs and targets of both heads as in REFERENCE.md#assembly; a target of -1 is ignored."""
    ids, start = row["ids"], row["prompt_length"]
    answer = ids[start:]
    return {
        "qa": (ids, [-1] * (len(ids) - len(answer) - 1) + answer + [tok.eos]),
        "lm": ([row["gen"], *ids], [*ids, tok.eos]),
    }


def mean(terms: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Return the weighted mean, 0 for no terms."""
    pairs = zip(terms, weights, strict=True)
    return sum((w * t for t, w in pairs), start=torch.zeros(())) / (sum(weights) or 1.0)


def divergence(teachers: Sequence[Tensor], logits: Tensor, rule: Rule) -> Tensor:
    """Return the softened KL divergence at one position, from the mean probabilities of the teachers."""
    p = torch.stack([(z / rule.temperature).softmax(-1) for z in teachers]).mean(0)
    q = (logits / rule.temperature).softmax(-1)
    if isinstance(rule.direction, float):
        mixture = rule.direction * p + (1 - rule.direction) * q
        return rule.direction * kl(p, mixture) + (1 - rule.direction) * kl(q, mixture)
    return kl(p, q) if rule.direction == "forward" else kl(q, p)


def kl(left: Tensor, right: Tensor) -> Tensor:
    """Return KL(left || right) of two distributions."""
    return (left * (left.log() - right.log())).sum()


def plain_head(
    model: Any, others: Sequence[Any], rows: Sequence[dict[str, Any]], tok: Any, head: str, rule: Rule
) -> Any:
    """Return the head's loss, its loss on labels, and its divergence per token times T squared, as scalars."""
    labels: dict[str, tuple[list[Tensor], list[float]]] = {"current": ([], []), "replayed": ([], [])}
    distances: list[Tensor] = []
    for row in rows:
        inputs, targets = sequences(row, tok)[head]
        logits = model(input_ids=torch.tensor([inputs])).logits[0].float()
        with torch.no_grad():
            theirs = [other(input_ids=torch.tensor([inputs])).logits[0].float() for other in others]
        current = row["origin"] == "real"
        terms, weights = labels["current" if current else "replayed"]
        for position, target in enumerate(targets):
            if target == -1:
                continue
            if rule.labels_on_current or not current:
                terms.append(functional.cross_entropy(logits[position], torch.tensor(target)))
                weights.append(ANS_WEIGHT if target == tok.ans else 1.0)
            if theirs and (current or rule.examples == "all"):
                distances.append(divergence([z[position] for z in theirs], logits[position], rule))
    if rule.means == "separate":
        on_labels = mean(*labels["current"]) + mean(*labels["replayed"])
    else:
        both = [x + y for x, y in zip(labels["current"], labels["replayed"], strict=True)]
        on_labels = mean(*both)
    distance = rule.temperature**2 * mean(distances, [1.0] * len(distances))
    share = rule.weight / (tok.size if rule.average == "vocabulary" else 1)
    return on_labels + share * distance, on_labels, distance


def plain_objective(
    model: Any, others: Sequence[Any], rows: Sequence[dict[str, Any]], tok: Any, rule: Rule, heads: Sequence[str]
) -> tuple[Tensor, dict[str, float]]:
    """Return the loss of a step, with its graph, and its figures."""
    total, figures = torch.zeros(()), {}
    for head in heads:
        loss, nll, kd = plain_head(model, others, rows, tok, head, rule)
        total = total + (1.0 if head == "qa" else rule.lm_weight) * loss
        figures |= {f"nll_{head}": nll.item(), f"kd_{head}": kd.item()}
    return total, figures | {"loss": total.item()}
