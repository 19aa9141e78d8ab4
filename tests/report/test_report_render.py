"""A sheet as Markdown, LaTeX and CSV: the same numbers, and no text that the format takes for a command."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from ray_l4.report.aggregate import AVERAGE, FORGETTING, Statistic
from ray_l4.report.paired import Difference, PairedRow, PairedTable
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


PAIRED = replace(
    SHEET,
    paired=PairedTable(
        against="la_mol",
        columns=(AVERAGE, FORGETTING),
        rows=(PairedRow("l4", "l4", 3, {AVERAGE: Difference((1.0, 2.0, 3.0)), FORGETTING: None}, 1.5, by_seed=False),),
        orders=2,
        has_reference=True,
    ),
)


def test_paired_differences_follow_the_rest_which_stays_as_it_is() -> None:
    for render in (markdown, latex):
        assert render(PAIRED).startswith(render(SHEET))
    added = markdown(PAIRED).removeprefix(markdown(SHEET)).split("\n")
    assert added[1] == "Paired differences to la_mol, over all orders together (2):"
    assert added[5] == "| l4      |     3 |   +2.00 | +1.00 to +3.00 |     better |       1.50 |"
    assert added[-1] == "", "the text ends with its last line"


def test_latex_has_a_second_table_for_paired_differences() -> None:
    lines = latex(PAIRED).removeprefix(latex(SHEET)).split("\n")
    assert lines[2] == r"\caption{Paired differences to la\_mol, over all orders together (2).}"
    assert lines[3] == r"\begin{tabular}{lrrrrr}"
    assert r"variant & pairs & average & 95 \% interval & average is & time ratio \\" in lines
    assert r"l4 & 3 & +2.00 & +1.00 to +3.00 & better & 1.50 \\" in lines


def test_csv_has_columns_for_paired_differences_only_with_them() -> None:
    records = list(csv.DictReader(io.StringIO(as_csv(PAIRED))))
    assert [*records[0]][-3:] == ["low", "high", "verdict"]
    assert not any(set(record.values()) & {None} or None in record for record in records), "all lines have all cells"
    before = list(csv.DictReader(io.StringIO(as_csv(SHEET))))
    assert [{key: record[key] for key in before[0]} for record in records[:4]] == before
    assert {key: value for key, value in records[4].items() if value} == {
        "table": "l4-table2",
        "scale": "0.1",
        "block": "paired differences to la_mol",
        "variant": "l4",
        "column": "average",
        "mean": "2.0",
        "runs": "3",
        "low": "1.0",
        "high": "3.0",
        "verdict": "better",
    }
    assert (records[5]["column"], records[5]["mean"]) == ("time ratio", "1.5")
