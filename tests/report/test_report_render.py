"""A sheet as Markdown, LaTeX and CSV: the same numbers, and no text that the format takes for a command."""

from __future__ import annotations

import csv
import io
import re

from hypothesis import given
from hypothesis import strategies as st

from ray_l4.report.aggregate import Statistic
from ray_l4.report.tables.render import as_csv, latex, markdown, tex
from ray_l4.report.tables.sheet import Sheet, SheetBlock, SheetCell, SheetRow

SHEET = Sheet(
    title="L4, Table 2: by hand",
    setting="seeds: 0, 1",
    columns=("woz.en", "a_b"),
    blocks=(
        SheetBlock(
            "woz.en -> a_b",
            (
                SheetRow(
                    "l4",
                    2,
                    (SheetCell(Statistic(61.0, 1.5, 2), Statistic(59.1), True), SheetCell(Statistic(3.0), None, False)),
                ),
                SheetRow("lamol", 0, (SheetCell(None, Statistic(52.4, 6.0), False), SheetCell(None, None, False))),
            ),
        ),
    ),
    notes=("100 % of it & more",),
    key="l4-table2",
    scale=0.1,
)


def test_markdown() -> None:
    assert markdown(SHEET).split("\n") == [
        "## L4, Table 2: by hand",
        "",
        "Mean ± standard deviation over runs; in brackets the published value. The best of our rows is in bold. Ours: "
        "seeds: 0, 1.",
        "",
        "woz.en -> a_b:",
        "",
        "| variant | runs |                woz.en |         a_b |",
        "| ------- | ---: | --------------------: | ----------: |",
        "| l4      |    2 | **61.0 ± 1.5** [59.1] | 3.0 (n = 1) |",
        "| lamol   |    0 |        – [52.4 ± 6.0] |           – |",
        "",
        "- 100 % of it & more",
        "",
    ]


def test_latex_has_every_cell_and_escapes_names() -> None:
    lines = latex(SHEET).split("\n")
    assert r"variant & runs & woz.en & a\_b \\" in lines
    assert r"\multicolumn{4}{l}{\emph{woz.en $\rightarrow$ a\_b}} \\" in lines
    assert r"l4 & 2 & \textbf{61.0 $\pm$ 1.5} [59.1] & 3.0 (n = 1) \\" in lines
    assert r"lamol & 0 & -- [52.4 $\pm$ 6.0] & -- \\" in lines
    assert any(r"100 \% of it \& more" in line for line in lines)
    text = "\n".join(lines)
    assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")
    assert text.index(r"\begin{tabular}") < text.index(r"\toprule") < text.index(r"\bottomrule")


@given(st.text(st.characters(codec="ascii", exclude_categories=["Cc"])))
def test_no_text_becomes_a_command_of_latex(text: str) -> None:
    escaped = tex(text)
    without = re.sub(r"\\text\w+\{\}|\$\\rightarrow\$|\\[&%$#_{}]", "", escaped)
    assert not re.search(r"[\\&%$#_{}~^]", without)


def test_csv_has_full_precision_and_names_table_and_scale() -> None:
    records = list(csv.DictReader(io.StringIO(as_csv(SHEET))))
    assert len(records) == 4
    assert records[0] == {
        "table": "l4-table2",
        "scale": "0.1",
        "block": "woz.en -> a_b",
        "variant": "l4",
        "column": "woz.en",
        "mean": "61.0",
        "sd": "1.5",
        "runs": "2",
        "published": "59.1",
        "published_sd": "",
    }
    assert (records[3]["mean"], records[3]["runs"], records[3]["published"]) == ("", "0", "")
