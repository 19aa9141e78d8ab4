"""A sheet as Markdown, LaTeX or CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from ray_l4.errors import ConfigError, nearest
from ray_l4.report.markdown import table
from ray_l4.report.paired import PairedTable
from ray_l4.report.paired_text import csv_lines, header_and_rows, notes, paired_markdown, title
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
    if sheet.paired:
        paragraphs.append(paired_markdown(sheet.paired))
    return "\n\n".join(paragraphs) + "\n"


def latex(sheet: Sheet) -> str:
    r"""Return a ``table`` environment, and one for paired differences. They need ``\usepackage{booktabs}``."""
    width = len(sheet.columns) + 2
    body = []
    for block in sheet.blocks:
        body += [r"\midrule", rf"\multicolumn{{{width}}}{{l}}{{\emph{{{tex(block.title)}}}}} \\"]
        for row in block.rows:
            body.append(_tex_row([tex(row.label), str(row.runs), *map(_tex_cell, _texts(sheet, row, "\0{}\0"))]))
    header = ["variant", "runs", *sheet.columns]
    text = _tex_table(f"{sheet.title}. {legend(sheet)}", header, body, sheet.notes)
    return text + (_tex_paired(sheet.paired) if sheet.paired else "")


def _tex_paired(paired: PairedTable) -> str:
    header, rows = header_and_rows(paired)
    body = [r"\midrule", *(_tex_row([*map(tex, row)]) for row in rows)]
    return _tex_table(f"{title(paired)}.", header, body, notes(paired))


def _tex_table(caption: str, header: Sequence[str], body: Sequence[str], notes: Sequence[str]) -> str:
    """Return a ``table`` environment around lines of LaTeX."""
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{tex(caption)}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}",
            r"\toprule",
            _tex_row([*map(tex, header)]),
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            *(rf"\par{{\footnotesize {tex(note)}}}" for note in notes),
            r"\end{table}",
            "",
        ]
    )


def as_csv(sheet: Sheet) -> str:
    """Return a line for each cell with full precision, without title and notes.

    Paired differences follow as lines of a block of their own, and add columns for the interval and the verdict.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    header = ["table", "scale", "block", "variant", "column", "mean", "sd", "runs", "published", "published_sd"]
    added = ["low", "high", "verdict"] if sheet.paired else []
    writer.writerow([*header, *added])
    for block in sheet.blocks:
        for row in block.rows:
            for column, cell in zip(sheet.columns, row.cells, strict=True):
                ours = (cell.ours.mean, cell.ours.sd, cell.ours.count) if cell.ours else (None, None, 0)
                theirs = (cell.published.mean, cell.published.sd) if cell.published else (None, None)
                place = [sheet.key, sheet.scale, block.title, row.label, column]
                writer.writerow([*place, *ours, *theirs, *(None for _ in added)])
    for line in csv_lines(sheet.paired) if sheet.paired else ():
        writer.writerow([sheet.key, sheet.scale, *line])
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
