"""Paired differences as texts: title, cells and notes, for every format."""

from __future__ import annotations

from collections.abc import Iterator

from ray_l4.metrics.bootstrap import FEWEST
from ray_l4.report.markdown import number, table
from ray_l4.report.paired import Difference, PairedRow, PairedTable

NONE = "–"
DIGITS = 2
"""Digits after the decimal point: one more than scores have, so that the end of an interval is seldom printed as 0."""
INTERVAL, TIME = "95 % interval", "time ratio"


def title(paired: PairedTable) -> str:
    """Return the title, which says whether several orders are taken together."""
    return f"Paired differences to {paired.against}" + (
        f", over all orders together ({paired.orders})" if paired.orders > 1 else ""
    )


def header_and_rows(paired: PairedTable) -> tuple[list[str], list[list[str]]]:
    """Return the header and the cells of every row. A column that is undefined everywhere is left out."""
    columns = shown_columns(paired)
    header = ["variant", "pairs", *(text for name in columns for text in (name, INTERVAL, f"{name} is")), TIME]
    return header, [_cells(row, columns) for row in paired.rows]


def shown_columns(paired: PairedTable) -> list[str]:
    """Return the columns in which some row has a value."""
    return [name for name in paired.columns if any(row.differences[name] for row in paired.rows)]


def notes(paired: PairedTable) -> list[str]:
    """Return what a reader must know about the differences."""
    if not paired.rows:
        return [f"There is no variant but {paired.against}."]
    found = [] if paired.has_reference else [f"No finished run of {paired.against} can be paired."]
    found += [
        f"A pair is a run of the variant and one of {paired.against} with the same order and seed; a difference is the "
        "variant's value minus the other. Time: median of the ratios.",
        f"Interval: bootstrap over the pairs, too narrow where there are few; none for fewer than {FEWEST}.",
    ]
    by_seed = ", ".join(row.label for row in paired.rows if row.by_seed and row.pairs)
    if by_seed:
        found.append(
            "Paired by seed, since one of the two has no order, and the other counts with its mean over the orders: "
            f"{by_seed}."
        )
    return found


def paired_markdown(paired: PairedTable) -> str:
    """Return title, table and notes as Markdown."""
    listed = "\n".join(f"- {note}" for note in notes(paired))
    return "\n\n".join([f"{title(paired)}:", *([table(*header_and_rows(paired))] if paired.rows else []), listed])


def csv_lines(paired: PairedTable) -> Iterator[list[str | float | None]]:
    """Yield a line for each difference and each ratio of times, with full precision.

    Its cells: block, variant, column, mean, no deviation, number of pairs, no published value and deviation, the ends
    of the interval, verdict.
    """
    block = f"paired differences to {paired.against}"
    for row in paired.rows:
        for name, difference in row.differences.items():
            if difference is not None:
                ends = difference.interval or (None, None)
                counted = (difference.mean, None, len(difference.values), None, None)
                yield [block, row.label, name, *counted, *ends, difference.verdict]
        if row.time_ratio is not None:
            yield [block, row.label, TIME, row.time_ratio, None, row.pairs, *[None] * 5]


def _cells(row: PairedRow, columns: list[str]) -> list[str]:
    texts = [text for name in columns for text in _texts(row.differences[name], row.pairs)]
    return [row.label, str(row.pairs), *texts, number(row.time_ratio, DIGITS)]


def _texts(difference: Difference | None, pairs: int) -> tuple[str, str, str]:
    """Return the mean, with the number of pairs if it is not that of the row, the interval, and the verdict."""
    if difference is None:
        return NONE, NONE, NONE
    fewer = f" (n = {len(difference.values)})" if len(difference.values) != pairs else ""
    interval = NONE if difference.interval is None else "{} to {}".format(*map(signed, difference.interval))
    return signed(difference.mean) + fewer, interval, difference.verdict or NONE


def signed(value: float) -> str:
    """Return a difference with its sign; zero, also where it is rounded, has none."""
    rounded = round(value, DIGITS)
    return f"{rounded:+.{DIGITS}f}" if rounded else f"{0:.{DIGITS}f}"
