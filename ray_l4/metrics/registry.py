"""The table of task metrics, and the one door to them: ``score(name, items)``, or ``item_scores`` for each alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ray_l4.errors import ConfigError, DataError, nearest
from ray_l4.metrics import dialogue, rouge, sql, text
from ray_l4.metrics.item import Item

__all__ = ["METRICS", "Item", "Metric", "item_scores", "score"]


@dataclass(frozen=True)
class Metric:
    """A way to score a task's answers.

    ``score`` maps items to named values in percent; ``headline`` is the one of them that stands in tables.
    """

    name: str
    headline: str
    description: str
    score: Callable[[Sequence[Item]], dict[str, float]]
    alone: str | None = None
    """The value that says how good one item is where the headline also depends on the items before it."""


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            "joint_goal_em",
            "joint_goal_em",
            "accumulated dialogue state, exact match (dsEM)",
            dialogue.state_em,
            alone="turn_goal_em",
        ),
        Metric("lfem", "lfem", "SQL logical form, exact match after repair of column names", sql.logical_form_em),
        Metric("avg_rouge", "avg_rouge", "mean of ROUGE-1, ROUGE-2 and ROUGE-L F-measure", rouge.average_rouge),
        Metric("em", "em", "exact match with any reference", text.matches),
        Metric("nf1", "nf1", "bag-of-words F1 after normalisation, best reference", text.matches),
        Metric("nem", "nem", "exact match after normalisation", text.matches),
    )
}


def score(metric: str, items: Sequence[Item]) -> dict[str, float]:
    """All values of ``metric`` over ``items``, in percent (REFERENCE.md#metrics).

    Predictions and references are stripped first. In the references both carry the leading space of decoded text,
    except where gold strings come raw from side files (REFERENCE.md#decoding); without blanks at the ends both cases compare
    alike.

    Raises:
        ConfigError: the metric is unknown.
        DataError: there are no items, or an item cannot be scored.
    """
    row, stripped = _checked(metric, items)
    return row.score(stripped)


def item_scores(metric: str, items: Sequence[Item]) -> list[float]:
    """How good every single item is, in percent: its own headline value, so that their mean is the headline of all.

    A dialogue turn has its own goal's exact match instead, because the joint goal also depends on the turns before it.
    Strips and raises like ``score``.
    """
    row, stripped = _checked(metric, items)
    return [row.score([item])[row.alone or row.headline] for item in stripped]


def _checked(metric: str, items: Sequence[Item]) -> tuple[Metric, list[Item]]:
    if metric not in METRICS:
        raise ConfigError(f"unknown metric {metric!r}. {nearest(metric, METRICS)}")
    if not items:
        raise DataError(f"metric {metric!r} got no items to score; a test set needs at least one example")
    return METRICS[metric], [_stripped(item) for item in items]


def _stripped(item: Item) -> Item:
    if not item.references:
        raise DataError(f"sample {item.sample_id!r} has no reference answer to score against; it needs at least one")
    references = tuple(reference.strip() for reference in item.references)
    return Item(item.prediction.strip(), references, item.sample_id, item.meta)
