"""The worst answers in ``report.md``, with what was asked."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_l4.report.markdown import run_report
from ray_l4.report.worst_answers import IN_MARKDOWN, worst, worst_answers
from ray_l4.store.records import write_score
from ray_l4.store.run_directory import Cell, RunDirectory
from tests.report.html_runs import TASKS, Parts, read, write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return write_run(tmp_path_factory.mktemp("l4") / "run")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A run whose answers a test replaces."""
    return write_run(tmp_path_factory.mktemp("other") / "run")


def section(report: str) -> str:
    return report.split("\n## Worst final answers\n")[1].split("\n## ")[0]


def listings(report: str) -> list[list[str]]:
    """Return the lines of every listing of the section."""
    return [part.split("\n```")[0].split("\n") for part in section(report).split("```text\n")[1:]]


def test_the_report_shows_what_was_asked_beside_the_worst_answers(run: RunDirectory) -> None:
    report = run_report(read(run))
    titles = [line for line in section(report).split("\n") if line.startswith("### ")]
    assert titles == [f"### {task}" for task in TASKS]
    first = listings(report)[0]
    assert first[0] == "example worst, score 0.0"
    assert first[1].startswith("  context:   ``` # word ``` # word")
    assert first[1].endswith("more characters)")
    assert first[2].startswith("  question:  worst? <script>")
    assert first[-6:] == [
        *("example fair, score 50.0", "  context:   short", "  question:  fair?", "  answer:    nearly"),
        *("  reference: nearly so", "  reference: so"),
    ]


def test_a_run_that_did_not_keep_what_was_asked_shows_its_answers(tmp_path: Path) -> None:
    report = run_report(read(write_run(tmp_path / "run", parts=Parts(asked=False))))
    assert "question:" not in section(report)
    assert listings(report)[0][-4:] == [
        *("example fair, score 50.0", "  answer:    nearly", "  reference: nearly so", "  reference: so")
    ]


def test_a_run_without_answers_has_no_such_section(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    for path in (run.path / "predictions").iterdir():
        path.unlink()
    assert "Worst final answers" not in run_report(read(run))
    assert worst_answers(read(run), Cell(0, 1, 0, TASKS[0])) is None


texts = st.text(st.characters(codec="utf-8"), max_size=20)


@given(rows=st.lists(st.tuples(texts, texts, texts), min_size=1, max_size=5))
def test_no_text_ends_its_line_or_the_listing(other: RunDirectory, rows: list[tuple[str, str, str]]) -> None:
    """Whatever users and models write, a listing has one line for each text."""
    names = ("context", "question", "prediction")
    answers: dict[str, list[object]] = {
        name: list(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)
    }
    answers |= {"sample_id": list(map(str, range(len(rows)))), "references": [["gold"]] * len(rows)}
    answers["score"] = [0.0] * len(rows)
    write_score(other, Cell(2, 2, 0, TASKS[0]), {"headline": "em", "values": {"em": 0.0}}, answers)
    (first, *_) = listings(run_report(read(other)))
    shown = rows[:IN_MARKDOWN]
    lines = [1 + len([text for text in (context, question) if text]) + 2 for context, question, _ in shown]
    assert len(first) == sum(lines) + len(shown) - 1, "and a blank line between answers"
    assert all(line == "" or line.startswith(("example ", "  ")) for line in first)


@given(st.lists(st.floats(0, 100), min_size=1))
def test_worst_answers_come_first_and_right_ones_not_at_all(scores: list[float]) -> None:
    found = [row["score"] for row in worst([{"score": score} for score in scores])]
    assert found == sorted(score for score in scores if score < 100)
