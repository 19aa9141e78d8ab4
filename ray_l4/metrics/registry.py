"""The table of task metrics, with ``score`` for a set of items and ``item_scores`` for each item."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ray_l4.errors import ConfigError, DataError, nearest
from ray_l4.metrics import dialogue, rouge, sql, text
from ray_l4.metrics.item import Item

__all__ = ["METRICS", "Item", "Metric", "item_scores", "score"]


@dataclass(frozen=True)
class Metric:
    """A task metric."""

    name: str
    headline: str
    """Key of the value shown in tables."""
    description: str
    score: Callable[[Sequence[Item]], dict[str, float]]
    """Return all values of the metric for a set of items, in percent."""
    item_value: str | None = None
    """Key of the value of a single item, if the headline also depends on earlier items. By default, the headline."""
    check_meta: Callable[[Item], object] | None = None
    """Raises DataError if an item's ``meta`` is not what the metric needs; None if it needs none."""

    @property
    def needs_meta(self) -> bool:
        """Whether it needs an item's ``meta``, which is stored with the test set and not with a run's answers."""
        return self.check_meta is not None


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            "joint_goal_em",
            "joint_goal_em",
            "accumulated dialogue state, exact match (dsEM)",
            dialogue.state_em,
            item_value="turn_goal_em",
        ),
        Metric(
            "lfem",
            "lfem",
            "SQL logical form, exact match after repair of column names",
            sql.logical_form_em,
            check_meta=sql.read_meta,
        ),
        Metric("avg_rouge", "avg_rouge", "mean of ROUGE-1, ROUGE-2 and ROUGE-L F-measure", rouge.average_rouge),
        Metric("em", "em", "exact match with any reference", text.matches),
        Metric("nf1", "nf1", "bag-of-words F1 after normalisation, best reference", text.matches),
        Metric("nem", "nem", "exact match after normalisation", text.matches),
    )
}


def score(metric: str, items: Sequence[Item]) -> dict[str, float]:
    """Return all values of ``metric`` for ``items``, in percent (REFERENCE.md#metrics).

    Predictions and references are stripped first. In the reference implementations both have the leading space of
    decoded text, except for gold strings read from side files (REFERENCE.md#decoding). Stripping makes the two cases
    equal.

    Raises:
        ConfigError: the metric is unknown.
        DataError: there are no items, or an item cannot be scored.
    """
    found, stripped = _prepare(metric, items)
    return found.score(stripped)


def item_scores(metric: str, items: Sequence[Item]) -> list[float]:
    """Return the headline value of every single item, in percent. Their mean is the headline value of all items.

    The joint goal of a dialogue turn also depends on earlier turns; its item score is the exact match of the turn's own
    goal instead. Strips texts and raises errors like ``score``.
    """
    found, stripped = _prepare(metric, items)
    return [found.score([item])[found.item_value or found.headline] for item in stripped]


def _prepare(metric: str, items: Sequence[Item]) -> tuple[Metric, list[Item]]:
    """Return the metric and the stripped items. Raises ConfigError or DataError like ``score``."""
    if metric not in METRICS:
        raise ConfigError(f"unknown metric {metric!r}. {nearest(metric, METRICS)}")
    if not items:
        raise DataError(f"metric {metric!r}: no items to score; a test set needs at least one example")
    return METRICS[metric], [_stripped(item) for item in items]


def _stripped(item: Item) -> Item:
    if not item.references:
        raise DataError(f"example {item.sample_id!r} has no reference answer to score against; it needs at least one")
    references = tuple(reference.strip() for reference in item.references)
    return Item(item.prediction.strip(), references, item.sample_id, item.meta)
