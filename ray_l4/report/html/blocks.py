"""What a page is made of: sections of notes, tables, charts, listings and folds. The template knows how each looks."""

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
    """Rows of text under a header. All of it is text: the page escapes it."""

    kind: ClassVar = "table"
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    prose: frozenset[int] = frozenset()
    """Columns that hold what a model read or wrote: set in a fixed-width face, broken into lines. Of the others, the
    first is aligned to the left and the rest, being numbers, to the right."""


@dataclass(frozen=True)
class Chart:
    """A drawing."""

    kind: ClassVar = "chart"
    id: str
    title: str
    svg: Markup
    """A whole ``<svg>`` element."""
    caption: str = ""


@dataclass(frozen=True)
class Listing:
    """Lines to be shown as they are."""

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
