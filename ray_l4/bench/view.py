"""Records as a table for people."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from rich.table import Table

from ray_l4.bench.record import Record

_SHORT = {"float32": "", "float16": " fp16"}


def table(records: Sequence[Record]) -> Table:
    """One row a record, in the order of peers, codec and transport as measured; fits a terminal of 80 columns."""
    drawn = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for name in COLUMNS:
        drawn.add_column(name, justify="left" if name in ("transport", "codec") else "right", no_wrap=True)
    for record in records:
        drawn.add_row(*(show(record) for show in COLUMNS.values()))
    return drawn


def _optional(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


COLUMNS: Mapping[str, Callable[[Record], str]] = {
    "N": lambda own: str(own.peers),
    "codec": lambda own: own.codec + _SHORT[own.precision],
    "transport": lambda own: own.transport,
    "MB": lambda own: f"{own.bytes_per_student_step / 1e6:.1f}",
    "publish": lambda own: _optional(own.publish_ms_p50, ".0f"),
    "step": lambda own: f"{own.step_ms_p50:.0f}",
    "wait": lambda own: _optional(own.wait_fraction, ".0%"),
    "ratio": lambda own: f"{own.ratio_to_in_process:.2f}",
    "RSS MB": lambda own: f"{own.peak_rss_bytes / 1e6:.0f}",
    "error": lambda own: f"{own.gradient_relative_error:.0e}",
    "cosine": lambda own: f"{own.gradient_cosine:.5f}",
}
"""Title -> what stands below it. Bytes are handed over in a step; times are in ms."""
