"""Records as a table for the terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.table import Table

from ray_l4.bench.record import Record

_SHORT = {"float32": "", "float16": " fp16"}


def table(records: Sequence[Record]) -> Table:
    """Return a table with one row per record, in the order given, at most 80 columns wide."""
    drawn = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for name in COLUMNS:
        drawn.add_column(name, justify="left" if name in ("transport", "codec") else "right", no_wrap=True)
    for record in records:
        drawn.add_row(*(show(record) for show in COLUMNS.values()))
    return drawn


def _optional(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


COLUMNS: Mapping[str, Callable[[Record], str]] = {
    "N": lambda record: str(record["peers"]),
    "codec": lambda record: record["codec"] + _SHORT[record["precision"]],
    "transport": lambda record: record["transport"],
    "MB": lambda record: f"{record['bytes_per_student_step'] / 1e6:.1f}",
    "publish": lambda record: _optional(record["publish_ms_p50"], ".0f"),
    "step": lambda record: f"{record['step_ms_p50']:.0f}",
    "wait": lambda record: _optional(record["wait_fraction"], ".0%"),
    "ratio": lambda record: f"{record['ratio_to_in_process']:.2f}",
    "RSS MB": lambda record: f"{record['peak_rss_bytes'] / 1e6:.0f}",
    "error": lambda record: f"{record['gradient_relative_error']:.0e}",
    "cosine": lambda record: f"{record['gradient_cosine']:.5f}",
}
"""Title of a column -> text of a record in it. MB: handed to the exchange in a step; times are in ms."""


def listing(row: Mapping[str, Any]) -> Table:
    """Return the figures of one measurement, a line each; nested ones on one line."""
    drawn = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=False)
    for name, value in row.items():
        drawn.add_row(name, _shown(value))
    return drawn


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_shown(own)}" for name, own in value.items())
    if isinstance(value, float):
        return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
