"""Tables that read well as text and as Markdown, and the report of one run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_l4.config.cluster import ClusterConfig
from ray_l4.config.experiment import ExperimentConfig
from ray_l4.errors import ConfigError, RunDirectoryError
from ray_l4.report.finished_run import FinishedRun
from ray_l4.report.markdown import comparison, number, run_report, table
from ray_l4.report.run_result import RunResult
from ray_l4.store.atomic import write_json
from ray_l4.store.run_directory import RunDirectory, read_json

cells = st.text(st.characters(categories=("L", "N")), max_size=12)


@st.composite
def grids(draw: st.DrawFn) -> list[list[str]]:
    width = draw(st.integers(1, 5))
    return draw(st.lists(st.lists(cells, min_size=width, max_size=width), min_size=1, max_size=5))


def cells_of(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


@given(grids())
def test_columns_are_aligned_and_nothing_is_lost(grid: list[list[str]]) -> None:
    lines = table(grid[0], grid[1:]).split("\n")
    bars = [[i for i, character in enumerate(line) if character == "|"] for line in lines]
    assert all(places == bars[0] for places in bars)
    assert [cells_of(line) for line in (lines[0], *lines[2:])] == grid


@given(grids())
def test_the_second_line_is_markdown_s_rule(grid: list[list[str]]) -> None:
    """At least one hyphen in each column, and a colon at the right end of all but the first."""
    first, *others = cells_of(table(grid[0], grid[1:]).split("\n")[1])
    assert re.fullmatch("-+", first)
    assert all(re.fullmatch("-+:", rule) for rule in others)


def test_a_table_as_a_person_sees_it() -> None:
    assert table(["method", "average"], [["l4", "81.2"], ["finetune", "–"]]).split("\n") == [
        "| method   | average |",
        "| -------- | ------: |",
        "| l4       |    81.2 |",
        "| finetune |       – |",
    ]


def test_numbers_and_what_is_undefined() -> None:
    assert [number(81.25), number(0.0), number(-3.04), number(None), number(61.5, 0)] == [
        "81.2",
        "0.0",
        "-3.0",
        "–",
        "62",
    ]


def summary(method: str = "l4", stream: tuple[str, ...] = ("woz.en", "wikisql"), **changes: Any) -> dict[str, Any]:
    return {
        "name": "by hand",
        "method": method,
        "stream": list(stream),
        "peers": 2,
        "seed": 5,
        "score_matrix": {"0": [[80.0, None], [60.0, 70.0]], "1": [[81.0, None], [61.0, 71.0]]},
        "final": {
            "0": dict(zip(stream, (60.0, 70.0), strict=False)),
            "1": dict(zip(stream, (61.0, 71.0), strict=False)),
        },
        "average_accuracy": {"0": 65.0, "1": 66.0},
        "average_incremental_accuracy": {"0": 72.5, "1": 73.5},
        "forgetting": {"0": 20.0, "1": 20.0},
        "backward_transfer": {"0": -20.0, "1": None},
        "wall_seconds": 61.2,
        "peak_memory_bytes": {"student-0": 512 * 2**20, "evaluator-0": 2**30},
        "exchange": {"bytes_per_step": 2_500_000.0, "bytes_received_per_step": 1e6, "wait_fraction": 0.125},
        "replay": {"1": {"requested": 508, "valid": 500, "dropped": 8}},
        **changes,
    }


def test_one_row_for_each_run() -> None:
    summaries = [summary(), summary(variant="l4-lambda-0"), summary("finetune", forgetting={"0": None}, seed=6)]
    lines = comparison([RunResult(each) for each in summaries]).split("\n")
    assert [cells_of(line) for line in lines if "---" not in line] == [
        ["variant", "seed", "woz.en", "wikisql", "average", "forgetting", "backward transfer", "wall s"],
        ["l4", "5", "60.0", "70.0", "65.0", "20.0", "-20.0", "61"],
        ["l4-lambda-0", "5", "60.0", "70.0", "65.0", "20.0", "-20.0", "61"],
        ["finetune", "6", "60.0", "70.0", "65.0", "–", "-20.0", "61"],
    ]


@pytest.mark.parametrize("other", [("wikisql", "woz.en"), ("woz.en",), ("woz.en", "wikisql", "e2enlg")])
def test_different_streams_do_not_stand_in_one_table(other: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=r"different streams.*woz\.en -> wikisql") as caught:
        comparison([RunResult(summary()), RunResult(summary(stream=other))])
    assert " -> ".join(other) in str(caught.value)


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    experiment = ExperimentConfig.model_validate({"stream": ["woz.en", "wikisql"], "model": {"from_scratch": {}}})
    manifest = {"command": "ray-l4 run x.yaml", "versions": {"torch": "2.13.0", "ray": "2.60"}, "platform": "Linux"}
    run = RunDirectory.create(tmp_path / "run", experiment, ClusterConfig(), manifest)
    write_json(run.path / "summary.json", summary())
    return run


def report_of(run: RunDirectory) -> str:
    return run_report(FinishedRun.open(run.path))


def section(report: str, title: str) -> str:
    return report.split(f"\n## {title}\n")[1].split("\n## ")[0]


def rows_of(text: str) -> list[list[str]]:
    return [cells_of(line) for line in text.split("\n") if line.startswith("|") and "---" not in line]


def test_the_report_has_every_student_s_matrix_and_figures(run: RunDirectory) -> None:
    report = report_of(run)
    assert report.startswith("# by hand: l4 on woz.en -> wikisql, seed 5\n\nMade by `ray-l4 run x.yaml`.")
    assert rows_of(section(report, "Student 0")) == [
        ["after learning", "woz.en", "wikisql"],
        ["woz.en", "80.0", "–"],
        ["wikisql", "60.0", "70.0"],
    ]
    assert rows_of(section(report, "Student 1"))[2] == ["wikisql", "61.0", "71.0"]
    assert "average accuracy 66.0; average incremental accuracy 73.5; forgetting 20.0; backward transfer –." in section(
        report, "Student 1"
    )


def test_students_stand_beside_each_other_under_their_graph(run: RunDirectory) -> None:
    beside = section(report_of(run), "Students compared")
    assert "Who learns from whom: complete: every student from all others." in beside
    figures = ["average accuracy", "average incremental accuracy", "forgetting", "backward transfer"]
    assert rows_of(beside) == [
        ["student", "woz.en", "wikisql", *figures],
        ["0", "60.0", "70.0", "65.0", "72.5", "20.0", "-20.0"],
        ["1", "61.0", "71.0", "66.0", "73.5", "20.0", "–"],
    ]


def test_one_student_has_nobody_beside_it(run: RunDirectory) -> None:
    alone = summary("lamol", peers=1, score_matrix={"0": [[80.0, None], [60.0, 70.0]]})
    write_json(run.path / "summary.json", alone)
    assert "Students compared" not in report_of(run)


def test_the_title_names_variant_and_scale(run: RunDirectory) -> None:
    write_json(run.path / "summary.json", summary(variant="l4-lambda-0"))
    manifest = read_json(run.path / "manifest.json")
    for scale, ending in ((0.1, ", scaled to 0.1 of its examples and epochs"), (1.0, "")):
        write_json(run.path / "manifest.json", manifest | {"scale": scale})
        title = report_of(run).split("\n")[0]
        assert title == f"# by hand: l4-lambda-0 on woz.en -> wikisql, seed 5{ending}"


def test_an_older_run_has_no_row_for_what_was_received(run: RunDirectory) -> None:
    write_json(run.path / "summary.json", summary(exchange={"bytes_per_step": 0.0, "wait_fraction": 0.0}))
    assert "received" not in section(report_of(run), "Cost")


def test_the_report_has_replay_and_cost(run: RunDirectory) -> None:
    report = report_of(run)
    assert rows_of(section(report, "Replay")) == [
        ["before learning", "requested", "valid", "dropped"],
        ["wikisql", "508", "500", "8"],
    ]
    assert rows_of(section(report, "Cost"))[1:] == [
        ["wall time", "61 s"],
        ["published by a student in a step", "2.500 MB"],
        ["received from its teachers in a step", "1.000 MB"],
        ["time students wait for their teachers", "12.5 %"],
        ["peak memory of student-0", "512 MiB"],
        ["peak memory of evaluator-0", "1024 MiB"],
    ]


def test_the_report_ends_with_all_it_takes_to_repeat_the_run(run: RunDirectory) -> None:
    text = section(report_of(run), "Configuration")
    assert "- software: torch 2.13.0, ray 2.60\n- platform: Linux\n" in report_of(run)
    blocks = re.findall("```yaml\n(.*?)\n```", text, flags=re.DOTALL)
    assert blocks == [(run.path / name).read_text().strip() for name in ("config.yaml", "cluster.yaml")]


def test_rows_are_stages_and_not_tasks(run: RunDirectory) -> None:
    changes = {"stages": ["all"], "score_matrix": {"0": [[60.0, 70.0]]}, "method": "multi-qa", "peers": 1}
    write_json(run.path / "summary.json", summary(**changes, replay={}))
    assert rows_of(section(report_of(run), "Student 0"))[1:] == [["all", "60.0", "70.0"]]


def test_a_run_without_replay_has_no_such_section(run: RunDirectory) -> None:
    write_json(run.path / "summary.json", summary(replay={}))
    assert "## Replay" not in report_of(run)


def test_an_unfinished_run_has_no_report(run: RunDirectory) -> None:
    (run.path / "summary.json").unlink()
    with pytest.raises(RunDirectoryError, match="did not finish"):
        report_of(run)
