"""The contents of a page: sections of notes, tables, charts, listings and folds. The template decides their looks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from markupsafe import Markup


@dataclass(frozen=True)
class Note:
    """A line of plain text."""

    kind: ClassVar = "note"
    text: str


@dataclass(frozen=True)
class Table:
    """Rows of text under a header. All of it is plain text, which the template escapes."""

    kind: ClassVar = "table"
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    wraps: bool = False
    """Whether its cells are words that may break into several lines, rather than numbers in columns."""
    prose: frozenset[int] = frozenset()
    """Columns of text that a model read or wrote, set in a fixed-width face with line breaks. Of the other columns, the
    first is aligned to the left and the rest, which are numbers, to the right."""


@dataclass(frozen=True)
class Chart:
    """A chart, drawn as SVG."""

    kind: ClassVar = "chart"
    id: str
    title: str
    svg: Markup
    """A complete ``<svg>`` element."""
    caption: str = ""


@dataclass(frozen=True)
class Listing:
    """Preformatted lines."""

    kind: ClassVar = "listing"
    text: str


@dataclass(frozen=True)
class Fold:
    """Blocks that can be folded away."""

    kind: ClassVar = "fold"
    title: str
    blocks: Sequence[Block]
    open: bool = False


Block = Note | Table | Chart | Listing | Fold


@dataclass(frozen=True)
class Section:
    """A part of the page with an entry in its table of contents."""

    id: str
    title: str
    blocks: Sequence[Block]
