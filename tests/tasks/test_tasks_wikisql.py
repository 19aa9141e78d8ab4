from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from ray_l4.config.experiment import DataConfig
from ray_l4.config.stream import TaskConfig
from ray_l4.errors import DataError
from ray_l4.metrics.registry import Item, score
from ray_l4.tasks.registry import load
from ray_l4.tasks.sampling import count_of, subset
from ray_l4.tasks.wikisql.headers import named_columns
from ray_l4.tasks.wikisql.query import Query, answer_of, context_of
from ray_l4.tasks.wikisql.text2sql import full_header, parse_group, partial_header

Write = Callable[..., Path]
ALL = TaskConfig(name="wikisql", train="all", test="all")
KEYWORDS = (
    " and key words max, min, count, sum, avg, =, >, <, op, select, where, and, col, table, caption, page, section, "
    "op, cond, question, agg, aggops, condops-- "
)


def lines(*records: Any) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def question(table: str, text: str, sel: int, agg: int = 0, conds: Any = ()) -> dict[str, Any]:
    return {"phase": 1, "table_id": table, "question": text, "sql": {"sel": sel, "agg": agg, "conds": list(conds)}}


def shown(table: pa.Table) -> list[tuple[str, str, dict[str, Any]]]:
    rows = table.to_pylist()
    return [(row["context"].replace(KEYWORDS, " | "), row["answer"], json.loads(row["meta"])) for row in rows]


def test_context_and_answer_have_the_documented_format() -> None:
    query = Query(0, "Who?", ["Player", "Max  Points"], 1, 1, [(0, 0, "Terrence Ross"), (1, 2, 3.0)])
    assert answer_of(query) == "SELECT MAX Max Points FROM table WHERE Player = Terrence Ross AND Max Points < 3.0"
    assert answer_of(Query(0, "", ["A"], 0, 0, [])) == "SELECT A FROM table"
    assert context_of(["A", "B"], "Who?").lower() == f"the table has columns a, b{KEYWORDS}who?"


def test_the_original_release_gives_full_headers(write: Write, data: DataConfig) -> None:
    write("wikisql/train.tables.jsonl", lines({"id": "t1", "header": ["Name", "Points", "Club"]}))
    write("wikisql/train.jsonl", lines(question("t1", "Who has MORE than 5?", 0, conds=[[1, 1, 5]])))
    # The substitute exists too, but the original takes precedence.
    write("wikisql/text2sql-data.wikisql.json", [])
    assert shown(load(ALL, "train", data)) == [
        (
            "the table has columns name, points, club | who has more than 5?",
            "select name from table where points > 5",
            {"sql": {"sel": 0, "agg": 0, "conds": [[1, 1, 5]]}, "header": ["name", "points", "club"]},
        )
    ]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (question("t2", "?", 0), "table t2 is not in test.tables.jsonl"),
        (question("t1", "?", 1), r"its sql refers to a column that \['A'\] does not have"),
        (question("t1", "?", 0, conds=[[-1, 0, "x"]]), "its sql refers to a column"),
        (question("t1", "?", 0, agg=6), r"not a query \(sel, agg, conds\)"),
        (question("t1", "?", 0, conds=[[0, 4, "x"]]), "not a query"),
        (question("t1", "?", 0, conds=[[0, 0]]), "not a query"),
        ({"table_id": "t1", "question": "?"}, "no key 'sql'"),
        ({"table_id": "t1", "question": "?", "sql": 3}, "not a query"),
        ([1], "no key 'table_id'"),
    ],
)
def test_bad_questions_are_located(record: Any, reason: str, write: Write, data: DataConfig) -> None:
    write("wikisql/test.tables.jsonl", lines({"id": "t1", "header": ["A"]}))
    write("wikisql/test.jsonl", lines(question("t1", "fine", 0), record))
    with pytest.raises(DataError, match=rf"test.jsonl, line 2: {reason}"):
        load(ALL, "test", data)


def test_a_line_that_is_not_json_is_located(write: Write, data: DataConfig) -> None:
    write("wikisql/test.tables.jsonl", lines({"id": "t1", "header": ["A"]}))
    write("wikisql/test.jsonl", lines(question("t1", "fine", 0)) + "{oops\n")
    with pytest.raises(DataError, match=r"test.jsonl, line 2: not JSON"):
        load(ALL, "test", data)


def test_without_tables_headers_are_the_named_columns_in_original_order(write: Write, data: DataConfig) -> None:
    write(
        "wikisql/test.jsonl",
        lines(
            question("t1", "Q0", 7, agg=3, conds=[[2, 0, "A AND B"], [5, 2, 1.5]]),
            question("t2", "Q1", 1),
            question("t1", "Q2", 3, conds=[[7, 0, "x\u2009y"]]),
        ),
    )
    readable = (
        "question,sql\nQ0,SELECT COUNT Seven FROM table WHERE Two (km) = A AND B AND Five < 1.5\n"
        "Q1,SELECT One FROM table\nQ2,SELECT Three FROM table WHERE Seven = x y\n"
    )
    write("wikisql/test.human_readable.csv", readable)
    header = ["two (km)", "three", "five", "seven"]
    assert shown(load(ALL, "test", data)) == [
        (
            "the table has columns two (km), three, five, seven | q0",
            "select count seven from table where two (km) = a and b and five < 1.5",
            {"sql": {"sel": 3, "agg": 3, "conds": [[0, 0, "A AND B"], [2, 2, 1.5]]}, "header": header},
        ),
        (
            "the table has columns one | q1",
            "select one from table",
            {"sql": {"sel": 0, "agg": 0, "conds": []}, "header": ["one"]},
        ),
        (
            "the table has columns two (km), three, five, seven | q2",
            "select three from table where seven = x y",
            {"sql": {"sel": 1, "agg": 0, "conds": [[3, 0, "x\u2009y"]]}, "header": header},
        ),
    ]


def test_a_readable_query_that_disagrees_is_a_bad_record(write: Write, data: DataConfig) -> None:
    assert named_columns({"sel": 0, "agg": 1, "conds": []}, "SELECT MIN A FROM table") == {}
    write("wikisql/dev.jsonl", lines(question("t1", "Q0", 0, agg=1)))
    write("wikisql/validation.human_readable.csv", "question,sql\nQ0,SELECT MIN A FROM table\n")
    with pytest.raises(DataError, match=r"dev.jsonl, line 1: its sql does not match the query in validation"):
        load(ALL, "dev", data)


def test_too_few_readable_queries_are_an_error(write: Write, data: DataConfig) -> None:
    write("wikisql/dev.jsonl", lines(question("t1", "Q0", 0), question("t1", "Q1", 0)))
    write("wikisql/validation.human_readable.csv", "question,sql\nQ0,SELECT A FROM table\n")
    with pytest.raises(DataError, match="has 1 queries, fewer than"):
        load(ALL, "dev", data)


def test_a_missing_file_names_both_layouts(write: Write, data: DataConfig) -> None:
    write("wikisql/test.jsonl", lines(question("t1", "Q0", 0)))
    with pytest.raises(DataError, match=r"no file train.tables.jsonl or text2sql-data.wikisql.json"):
        load(ALL, "train", data)


def group(sql: str, original: str, *sentences: tuple[str, str, str, dict[str, str]]) -> dict[str, Any]:
    keys = ("original", "question-split", "table-id", "variables")
    parts = [dict(zip(keys, sentence, strict=True)) for sentence in sentences]
    return {"sql": [sql], "sql-original": [original], "sentences": parts}


T = "TABLEalias0."
TWO = (
    f'SELECT COUNT {T}WINS_FIELD FROM TABLE AS TABLEalias0 WHERE {T}CLUB/TEAM_FIELD = "var1" AND NO._FIELD > var0 ;',
    "SELECT COUNT col4 FROM table WHERE col1 > 6 AND col2 = Real AND  Co",
)


def test_a_group_is_read_in_original_order() -> None:
    template = parse_group(*TWO)
    assert template is not None
    assert (template.agg, template.names, template.operators) == (3, ["wins", "no.", "club/team"], [1, 0])
    assert (template.first_numbers, template.first_values) == ([4, 1, 2], ["6", "Real AND  Co"])
    assert template.variables == ["var0", "var1"]


@pytest.mark.parametrize(
    ("sql", "original", "names"),
    [
        (
            "SELECT MP'S_TERM_FIELD FROM table WHERE A_FIELD = var0 ;",
            "SELECT  col1 FROM table WHERE col0 = x",
            ["mp's term", "a"],
        ),
        (f"SELECT MAX {T}2ND_FIELD FROM TABLE AS TABLEalias0 ;", "SELECT MAX col1 FROM table", ["2nd"]),
        ("SELECT SUM(RED)_FIELD FROM TABLE AS TABLEalias0 ;", "SELECT SUM col1 FROM table", ["(red)"]),
        (
            f"SELECT {T}A_FIELD FROM TABLE AS TABLEalias0 WHERE {T}B_FIELD = var0 = var1 ;",
            "SELECT  col0 FROM table WHERE col1 = x = y",
            None,
        ),
        (
            f"SELECT {T}A_FIELD FROM TABLE AS TABLEalias0 WHERE {T}B_FIELD = var0 ;",
            "SELECT  col0 FROM table WHERE col1 > x",
            None,
        ),
        ("DELETE", "SELECT  col0 FROM table", None),
    ],
)
def test_odd_templates(sql: str, original: str, names: list[str] | None) -> None:
    template = parse_group(sql, original)
    assert (template.names if template else None) == names


def test_headers_prefer_tabfact_where_it_agrees() -> None:
    cells = ["no", "club / team", "wins", "year"]
    assert full_header({"no.": 0, "club/team": None}, cells) == ["no.", "club/team", "wins", "year"]
    assert full_header({"no.": 1}, cells) is None  # different position
    assert full_header({"no.": 4}, cells) is None  # too short
    assert full_header({"draws": None}, cells) is None  # not in TabFact's list
    assert full_header({"no.": 0, "no": None}, cells) is None  # two spellings claim one column
    assert full_header({"a": None}, []) is None
    assert partial_header({"late": None, "b": 7, "a": 0, "later": None}) == ["a", "b", "late", "later"]


def test_training_questions_are_rebuilt(write: Write, lenient: DataConfig) -> None:
    one = f"SELECT {T}YEAR_FIELD FROM TABLE AS TABLEalias0 WHERE {T}CITY_FIELD = var0 ;"
    write(
        "wikisql/text2sql-data.wikisql.json",
        [
            group(
                *TWO,
                ("First?", "train", "full", {"var0": "6", "var1": "real"}),
                ("Dev?", "dev", "other", {"var0": "1", "var1": "x"}),
                ("Later?", "train", "partial", {"var0": "8", "var1": "Ajax"}),
                ("Lost?", "train", "partial", {"var0": "8"}),
            ),
            group(one, "SELECT  col9 FROM table WHERE col8 = Rome", ("When?", "train", "partial", {"var0": "Rome"})),
            {"sql": []},
        ],
    )
    write("wikisql/tabfact_headers.tsv", "full\trank#no#club / team#draws#wins\nnever\ta#b\n")
    table = load(ALL, "train", lenient)
    assert shown(table) == [
        (
            "the table has columns rank, no., club/team, draws, wins | first?",
            "select count wins from table where no. > 6 and club/team = real and co",
            {
                "sql": {"sel": 4, "agg": 3, "conds": [[1, 1, "6"], [2, 0, "Real AND  Co"]]},
                "header": ["rank", "no.", "club/team", "draws", "wins"],
            },
        ),
        (
            "the table has columns city, year, wins, no., club/team | later?",
            "select count wins from table where no. > 8 and club/team = ajax",
            {
                "sql": {"sel": 2, "agg": 3, "conds": [[3, 1, "8"], [4, 0, "Ajax"]]},
                "header": ["city", "year", "wins", "no.", "club/team"],
            },
        ),
        (
            "the table has columns city, year, wins, no., club/team | when?",
            "select year from table where city = rome",
            {
                "sql": {"sel": 1, "agg": 0, "conds": [[0, 0, "Rome"]]},
                "header": ["city", "year", "wins", "no.", "club/team"],
            },
        ),
    ]
    assert table.column("sample_id").to_pylist() == ["0", "1", "3"]  # the unusable question's number stays unused


def test_unusable_training_questions_say_why(write: Write, data: DataConfig) -> None:
    odd = group("?", "?", ("Q?", "train", "t", {}))
    later = group(*TWO, ("D?", "dev", "t", {}), ("Q?", "train", "t", {"var0": "1"}))
    write("wikisql/text2sql-data.wikisql.json", [odd, later, {"sql": []}])
    write("wikisql/tabfact_headers.tsv", "t\ta#b\n")
    with pytest.raises(DataError) as caught:
        load(ALL, "train", data)
    assert "wikisql.json, group 0, question 0: its query cannot be parsed" in str(caught.value)
    assert "wikisql.json, group 1, question 1: a value of its query is missing" in str(caught.value)
    assert "wikisql.json, group 2: not a group of questions: IndexError" in str(caught.value)


@pytest.fixture(scope="module")
def train(real: DataConfig) -> pa.Table:
    """All real training questions."""
    return load(ALL, "train", real)


@pytest.fixture(scope="module")
def real_test(real: DataConfig) -> pa.Table:
    return load(TaskConfig(name="wikisql"), "test", real)


def gold_score(table: pa.Table) -> dict[str, float]:
    """The metric's score of the gold answers."""
    rows = table.to_pylist()
    return score("lfem", [Item(row["answer"], tuple(row["references"]), row["sample_id"], row["meta"]) for row in rows])


@pytest.mark.slow
@pytest.mark.shared_data
def test_real_training_questions(train: pa.Table) -> None:
    assert train.num_rows == 56324  # of 56,355; see the module's docstring
    row = train.slice(0, 1).to_pylist()[0]
    header = ["state/territory", "text/background colour", "format", "current slogan", "current series", "notes"]
    assert (
        row["context"]
        == f"the table has columns {', '.join(header)}{KEYWORDS}tell me what the notes are for south australia "
    )
    assert row["answer"] == "select notes from table where current slogan = south australia"
    assert json.loads(row["meta"]) == {
        "sql": {"sel": 5, "agg": 0, "conds": [[3, 0, "SOUTH AUSTRALIA"]]},
        "header": header,
    }


@pytest.mark.slow
@pytest.mark.shared_data
def test_real_training_answers_are_what_the_metric_expects(train: pa.Table) -> None:
    # The exact parser fails only on headers with a repeated name and on values that contain an operator.
    assert gold_score(train.slice(0, 2000))["lfem_exact"] > 99


@pytest.mark.shared_data
def test_real_test_questions(real_test: pa.Table) -> None:
    assert real_test.num_rows == 15878
    row = real_test.slice(0, 1).to_pylist()[0]
    assert row["context"].endswith("condops-- what is terrence ross' nationality")
    assert row["answer"] == "select nationality from table where player = terrence ross"
    header = json.loads(row["meta"])["header"]
    assert header == ["player", "nationality", "years in toronto", "school/club team"]
    assert gold_score(real_test.slice(0, 2000))["lfem_exact"] > 99


@pytest.mark.slow
@pytest.mark.shared_data
def test_the_papers_sample_and_the_dev_split(train: pa.Table, real: DataConfig) -> None:
    count = count_of("paper", 6525, train.num_rows, "wikisql (train)")
    sample = subset(train, count, real.seed, "wikisql", "train", by_dialogue=False)
    numbers = [int(name) for name in sample.column("sample_id").to_pylist()]
    assert len(numbers) == 6525
    assert numbers == sorted(numbers)
    assert load(ALL, "dev", real).num_rows == 8421
