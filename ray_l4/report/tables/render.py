"""A sheet as Markdown, LaTeX or CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from ray_l4.errors import ConfigError, nearest
from ray_l4.report.markdown import table
from ray_l4.report.tables.sheet import Sheet, SheetCell, SheetRow

NONE = "–"
_TEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "->": r"$\rightarrow$",
    "±": r"$\pm$",
    NONE: "--",
}
_SPECIAL = re.compile("|".join(map(re.escape, sorted(_TEX, key=len, reverse=True))))


def legend(sheet: Sheet) -> str:
    """Return a line that explains a cell and names our runs."""
    published = "; in brackets the published value" if sheet.has_published else ""
    return f"Mean ± standard deviation over runs{published}. The best of our rows is in bold. Ours: {sheet.setting}."


def markdown(sheet: Sheet) -> str:
    """Return the title, a table for each block, and the notes."""
    header = ["variant", "runs", *sheet.columns]
    paragraphs = [f"## {sheet.title}", legend(sheet)]
    for block in sheet.blocks:
        rows = [[row.label, str(row.runs), *_texts(sheet, row, "**{}**")] for row in block.rows]
        paragraphs += [f"{block.title}:", table(header, rows)]
    if sheet.notes:
        paragraphs.append("\n".join(f"- {note}" for note in sheet.notes))
    return "\n\n".join(paragraphs) + "\n"


def latex(sheet: Sheet) -> str:
    r"""Return a ``table`` environment, which needs ``\usepackage{booktabs}``."""
    width = len(sheet.columns) + 2
    body = []
    for block in sheet.blocks:
        body += [r"\midrule", rf"\multicolumn{{{width}}}{{l}}{{\emph{{{tex(block.title)}}}}} \\"]
        for row in block.rows:
            body.append(_tex_row([tex(row.label), str(row.runs), *map(_tex_cell, _texts(sheet, row, "\0{}\0"))]))
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{tex(f'{sheet.title}. {legend(sheet)}')}}}",
            rf"\begin{{tabular}}{{l{'r' * (width - 1)}}}",
            r"\toprule",
            _tex_row(["variant", "runs", *map(tex, sheet.columns)]),
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            *(rf"\par{{\footnotesize {tex(note)}}}" for note in sheet.notes),
            r"\end{table}",
            "",
        ]
    )


def as_csv(sheet: Sheet) -> str:
    """Return a line for each cell with full precision, without title and notes."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["table", "scale", "block", "variant", "column", "mean", "sd", "runs", "published", "published_sd"])
    for block in sheet.blocks:
        for row in block.rows:
            for column, cell in zip(sheet.columns, row.cells, strict=True):
                ours = (cell.ours.mean, cell.ours.sd, cell.ours.count) if cell.ours else (None, None, 0)
                theirs = (cell.published.mean, cell.published.sd) if cell.published else (None, None)
                writer.writerow([sheet.key, sheet.scale, block.title, row.label, column, *ours, *theirs])
    return out.getvalue()


FORMATS: Mapping[str, Callable[[Sheet], str]] = MappingProxyType({"markdown": markdown, "latex": latex, "csv": as_csv})
SUFFIXES = MappingProxyType({".md": "markdown", ".tex": "latex", ".csv": "csv"})
"""Suffix of a file name -> format."""


def format_of(name: str | None, out: Path | None) -> Callable[[Sheet], str]:
    """Return the format called ``name``, else that of the suffix of ``out``, else Markdown.

    Raises ConfigError if there is none of that name.
    """
    chosen = name or SUFFIXES.get(out.suffix if out else ".md", "markdown")
    if chosen not in FORMATS:
        raise ConfigError(f"--format {chosen}: no such format. {nearest(chosen, FORMATS)}")
    return FORMATS[chosen]


def tex(text: str) -> str:
    """Escape everything in a plain text that LaTeX would take for a command."""
    return _SPECIAL.sub(lambda match: _TEX[match[0]], text)


def _tex_row(cells: list[str]) -> str:
    return " & ".join(cells) + r" \\"


def _tex_cell(text: str) -> str:
    """Escape a cell. Its bold part is enclosed in zero characters, which no label holds."""
    plain, *rest = text.split("\0")
    return tex(plain) + (rf"\textbf{{{tex(rest[0])}}}{tex(rest[1])}" if rest else "")


def _texts(sheet: Sheet, row: SheetRow, bold: str) -> list[str]:
    return [_text(sheet, row, cell, bold) for cell in row.cells]


def _text(sheet: Sheet, row: SheetRow, cell: SheetCell, bold: str) -> str:
    ours = cell.ours.text(sheet.digits) if cell.ours else NONE
    ours = bold.format(ours) if cell.best else ours
    fewer = f" (n = {cell.ours.count})" if cell.ours and cell.ours.count != row.runs else ""
    published = f" [{cell.published.text(sheet.published_digits)}]" if cell.published else ""
    return ours + fewer + published
