"""Records as a table for people."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from rich.table import Table

from ray_l4.runtime.bench.record import Record


def table(records: Sequence[Record]) -> Table:
    """One row a record."""
    drawn = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for name in COLUMNS:
        drawn.add_column(name, justify="left" if name in ("transport", "codec") else "right", no_wrap=True)
    for record in records:
        drawn.add_row(*(show(record) for show in COLUMNS.values()))
    return drawn


def _codec(record: Record) -> str:
    return record.codec if record.precision == "float32" else f"{record.codec} {record.precision}"


def _optional(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


COLUMNS: Mapping[str, Callable[[Record], str]] = {
    "peers": lambda r: str(r.peers),
    "codec": _codec,
    "transport": lambda r: r.transport,
    "MB/step": lambda r: f"{r.bytes_per_student_step / 1e6:.2f}",
    "on the wire": lambda r: f"{r.wire_bytes_per_student_step / 1e6:.2f}",
    "publish ms": lambda r: _optional(r.publish_ms_p50, ".0f"),
    "step ms": lambda r: f"{r.step_ms_p50:.0f}",
    "p20-p80": lambda r: f"{r.step_ms_p20:.0f}-{r.step_ms_p80:.0f}",
    "wait": lambda r: _optional(r.wait_fraction, ".1%"),
    "ratio": lambda r: f"{r.ratio_to_in_process:.2f}",
    "peak MB": lambda r: f"{r.peak_rss_bytes / 1e6:.0f}",
    "gradient error": lambda r: f"{r.gradient_relative_error:.1e}",
    "cosine": lambda r: f"{r.gradient_cosine:.6f}",
}
"""Title -> what stands below it."""
