"""The sections of the page about a run: their tables, charts and notes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_l4.metrics import continual
from ray_l4.metrics.continual import forgetting_by_task
from ray_l4.report.finished_run import FinishedRun, labels
from ray_l4.report.html import section_cost, section_runs, section_scores, section_text, section_training
from ray_l4.report.html.blocks import Block, Chart, Fold, Note, Section, Table
from ray_l4.report.html.section_text import odd_examples, usual_endings
from ray_l4.report.markdown import run_report
from ray_l4.store.atomic import write_json
from ray_l4.store.run_directory import read_json
from tests.report.html_runs import (
    LONG_CONTEXT,
    NASTY,
    TASKS,
    Parts,
    as_an_older_version_left_it,
    change_summary,
    read,
    replay_rows,
    write_run,
)


@pytest.fixture(scope="module")
def l4(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    return read(write_run(tmp_path_factory.mktemp("l4") / "run"))


MANIFEST = {"started": "2026-11-28 21:09:52+00:00", "test_examples": {"woz.en": 100}}
PARAMETERS = {"0": {"count": 1234567, "adapters": False}, "1": {"count": 12, "adapters": True}}


def finished(folder: Path, method: str, **settings: Any) -> FinishedRun:
    return read(write_run(folder / method, method, **settings))


def flat(blocks: Sequence[Block]) -> list[Block]:
    """Return all blocks, including those in folds."""
    return [
        inner for block in blocks for inner in ([block, *flat(block.blocks)] if isinstance(block, Fold) else [block])
    ]


def charts(section: Section) -> list[str]:
    return [block.id for block in flat(section.blocks) if isinstance(block, Chart)]


def tables(section: Section) -> list[Table]:
    return [block for block in flat(section.blocks) if isinstance(block, Table)]


def notes(section: Section) -> str:
    return " ".join(block.text for block in flat(section.blocks) if isinstance(block, Note))


def rows_of(table: Table) -> dict[str, list[str]]:
    return {row[0]: list(row[1:]) for row in table.rows}


def test_students_stand_beside_each_other_with_their_difference(l4: FinishedRun) -> None:
    (table,) = tables(section_scores.students(l4, "r"))
    rows = rows_of(table)
    assert table.header == ["final", "student 0", "student 1", "largest difference"]
    assert rows["e2enlg"] == ["66.0", "67.0", "1.0"]  # 10 x 2 + 3 x 2 + 20 x 2, and the student's number
    assert rows["average"] == ["46.0", "47.0", "1.0"]
    assert rows["forgetting"] == ["0.0", "0.0", "0.0"]


def test_a_single_student_has_nobody_beside_it(tmp_path: Path) -> None:
    section = section_scores.students(finished(tmp_path, "finetune"), "r")
    assert tables(section)[0].header == ["final", "student 0"]
    assert section.title == "Final scores"


def test_an_undefined_figure_has_no_difference(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    change_summary(run, lambda summary: summary | {"forgetting": {"0": None, "1": 3.0}})
    (table,) = tables(section_scores.students(read(run), "r"))
    assert rows_of(table)["forgetting"] == ["–", "3.0", "–"]


def test_curves_go_through_every_checkpoint(l4: FinishedRun) -> None:
    first, second = (block for block in section_scores.curves(l4, "r").blocks if isinstance(block, Chart))
    assert [first.id, second.id] == ["r-curves-0", "r-curves-1"]
    # six checkpoints of three tasks, each with a marker, and one marker a task in the legend
    assert str(first.svg).count("<use ") - _ticks(first) == 3 * (6 + 1)


def _ticks(chart: Chart) -> int:
    return sum(str(chart.svg).count(f'tick_{number}"') for number in range(1, 30)) - 3  # a stage's name has no mark


@pytest.mark.parametrize(
    ("method", "stages", "figures"),
    [
        ("l4", 3, ["r-matrix-0", "r-matrix-1", "r-forgetting"]),
        ("finetune", 3, ["r-matrix-0", "r-forgetting"]),
        ("single-qa", 3, ["r-matrix-0"]),
        ("multi-qa", 1, ["r-matrix-0"]),
    ],
)
def test_scores_of_every_kind_of_method(tmp_path: Path, method: str, stages: int, figures: list[str]) -> None:
    run = finished(tmp_path, method)
    assert len(run.stages) == len(run.matrix(0)) == stages
    section = section_scores.scores(run, "r")
    assert charts(section) == figures
    assert ("Forgetting is undefined" in notes(section)) == ("r-forgetting" not in figures)
    assert len(charts(section_scores.curves(run, "r"))) == len(run.students)


matrices = st.integers(2, 5).flatmap(
    lambda n: st.lists(st.lists(st.floats(0, 100), min_size=n, max_size=n), min_size=n, max_size=n)
)


@given(matrices)
def test_the_mean_of_the_tasks_forgetting_is_what_the_papers_call_forgetting(matrix: list[list[float]]) -> None:
    found = forgetting_by_task(matrix)
    known = [value for value in found.values() if value is not None]
    assert len(known) == len(found) == len(matrix) - 1
    assert sum(known) / len(known) == pytest.approx(continual.forgetting(matrix))


def test_forgetting_of_a_task_needs_its_scores_from_then_on() -> None:
    assert forgetting_by_task([[80.0, None, None], [90.0, 70.0, None], [60.0, None, 9.0]]) == {0: 30.0, 1: None}
    assert forgetting_by_task([[80.0, 70.0]]) == {}


def test_disagreement_and_exchange_only_where_students_learn_from_others(l4: FinishedRun, tmp_path: Path) -> None:
    assert charts(section_training.training(l4, "r")) == ["r-loss", "r-disagreement"]
    assert charts(section_training.exchange(l4, "r")) == ["r-exchange-steps"]
    rows = rows_of(tables(section_training.exchange(l4, "r"))[0])
    assert rows["published by a student in a step"] == ["2.000 MB"]
    assert rows["received from its teachers in a step"] == ["3.000 MB"]
    assert rows["published in total"] == ["0.120 GB"]  # 30 steps of two students
    assert rows["received in total"] == ["0.180 GB"]
    for alone in (finished(tmp_path, "lamol"), finished(tmp_path, "l4", peers={"count": 1})):
        assert charts(section_training.training(alone, "r")) == ["r-loss"]
        assert charts(section_training.exchange(alone, "r")) == []
        assert "learn from nobody" in notes(section_training.training(alone, "r"))


def test_who_learns_from_whom_is_the_run_s_own_choice(tmp_path: Path) -> None:
    edges = {"count": 4, "topology": [[0, 1], [3, 1]]}
    listed = finished(tmp_path / "listed", "l4", peers=edges)
    none = finished(tmp_path / "none", "l4", peers=edges | {"topology": []})
    facts, _ = tables(section_scores.summary(listed, "r"))
    assert rows_of(facts)["who learns from whom"] == [
        "as listed: 0 learns from nobody; 1 from 0, 3; 2 from nobody; 3 from nobody"
    ]
    assert charts(section_training.training(listed, "r")) == ["r-loss", "r-disagreement"]
    assert charts(section_training.training(none, "r")) == ["r-loss"]


def test_four_students_have_a_drawing_each_and_a_column_each(tmp_path: Path) -> None:
    run = finished(tmp_path, "l4", peers={"count": 4, "topology": "ring"})
    assert charts(section_scores.scores(run, "r")) == [*(f"r-matrix-{n}" for n in range(4)), "r-forgetting"]
    assert charts(section_scores.curves(run, "r")) == [f"r-curves-{n}" for n in range(4)]
    (table,) = tables(section_scores.students(run, "r"))
    assert table.header == ["final", *(f"student {n}" for n in range(4)), "largest difference"]
    assert rows_of(table)["e2enlg"] == ["66.0", "67.0", "68.0", "69.0", "3.0"]


def test_a_run_from_before_there_was_a_choice_has_its_method_s_graph(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    change_summary(run, lambda summary: {key: summary[key] for key in summary if key != "topology"})
    facts, _ = tables(section_scores.summary(read(run), "r"))
    assert rows_of(facts)["who learns from whom"] == ["complete: every student from all others"]
    change_summary(run, lambda summary: summary | {"method": "of a later version"})
    facts, _ = tables(section_scores.summary(read(run), "r"))
    assert rows_of(facts)["who learns from whom"] == ["unknown"]


def test_an_older_run_has_no_figures_of_what_was_received(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    as_an_older_version_left_it(run)
    section = section_training.exchange(read(run), "r")
    assert [row[0] for row in tables(section)[0].rows] == [
        "published by a student in a step",
        "published in total",
        "time students wait for their teachers",
    ]
    (chart,) = [block for block in section.blocks if isinstance(block, Chart)]
    assert "sent (MB)" in chart.svg and "received (MB)" not in chart.svg


def test_one_process_has_one_bar_of_memory(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    change_summary(run, lambda summary: summary | {"peak_memory_bytes": {"process": 3 * 2**30}})
    memory = [b for b in section_cost.cost(read(run), "r").blocks if getattr(b, "id", "") == "r-memory"]
    assert isinstance(memory[0], Chart) and "process 3072 MiB" in memory[0].svg


def test_a_run_without_steps_or_timeline_says_so(tmp_path: Path) -> None:
    run = read(write_run(tmp_path / "run", parts=Parts(timeline=False, steps=False)))
    assert "no figures of steps" in notes(section_training.training(run, "r"))
    assert "no figures of steps" in notes(section_training.exchange(run, "r"))
    section = section_cost.cost(run, "r")
    assert "No timeline" in notes(section)
    assert charts(section) == ["r-memory"]


def test_the_timeline_has_the_coordinator_above_and_counts_seconds(l4: FinishedRun) -> None:
    section = section_cost.cost(l4, "r")
    assert charts(section) == ["r-timeline", "r-time", "r-memory"]
    (table,) = tables(section)
    assert list(table.header) == ["process", "replay", "training", "scoring"]
    assert list(map(list, table.rows)) == [
        ["coordinator", "30.0", "0.0", "0.0"],
        ["student 0", "0.0", "120.0", "0.0"],
        ["student 1", "0.0", "120.0", "0.0"],
        ["evaluator 0", "0.0", "0.0", "60.0"],
    ]


def test_replay_shows_valid_dropped_and_odd_examples(l4: FinishedRun) -> None:
    section = section_text.replay(l4, "r")
    first, second = (block for block in section.blocks if isinstance(block, Fold))
    assert (
        first.title
        == f"Before learning {TASKS[1]}: 4 of 6 valid, 1 dropped (no answer token), 1 dropped (several answer tokens)"
    )
    assert [table.caption.split(":")[0] for table in flat(first.blocks) if isinstance(table, Table)] == [
        "Valid",
        "Dropped",
    ]
    valid, dropped, odd = (table for table in flat(second.blocks) if isinstance(table, Table))
    assert [row[:3] for row in valid.rows] == [
        [task, "valid", f"{i}, by student 0"]
        for task, i in [(TASKS[0], 0), (TASKS[0], 1), (TASKS[0], 2), (TASKS[1], 6), (TASKS[1], 7), (TASKS[1], 8)]
    ]
    assert NASTY in valid.rows[0][3]
    assert [row[1] for row in dropped.rows] == ["no answer token"] * 2 + ["several answer tokens"] * 2
    assert [row[:2] for row in odd.rows] == [[TASKS[1], f"asks the question of {TASKS[0]}"]]
    assert "(1 of 9)" in odd.caption


def test_nothing_replayed_is_said(tmp_path: Path) -> None:
    assert notes(section_text.replay(finished(tmp_path, "finetune"), "r")) == "Nothing was replayed in this run."


def example(task: str, prompt: str, valid: bool = True) -> dict[str, Any]:
    return {"task": task, "text": f" __{task}__ {prompt} __ans__ yes", "valid": valid}


def test_a_task_s_usual_ending_is_what_most_of_its_examples_end_with() -> None:
    rows = [example("a", f"{name} what is it then?") for name in ("x", "y", "z")] + [example("a", "noise")]
    rows += [example("b", "bought tea?"), example("b", "sold tea?")]  # one shared word is not a question
    assert usual_endings(rows) == {"a": ("what", "is", "it", "then?")}
    assert usual_endings([rows[0], example("a", "other words"), example("a", "what is it then?", valid=False)]) == {}


def test_odd_are_those_that_ask_like_another_task_and_not_like_their_own() -> None:
    a = [example("a", f"{name} what is the sum?") for name in "uvw"]
    b = [example("b", f"{name} what is the name?") for name in "uvw"]
    odd, bad = example("b", "1 and 2 what is the sum?"), example("b", "what is the sum?", valid=False)
    assert odd_examples([*a, *b, odd, bad]) == [(odd, "a")]
    # Tasks that share one question cannot be told apart by it.
    alike = [example(task, f"{name} what is the sum?") for task in "ab" for name in "uvw"]
    assert odd_examples(alike) == []


@given(st.lists(st.sampled_from(TASKS), min_size=1, max_size=3, unique=True))
def test_odd_examples_are_valid_ones_of_the_run(tasks: list[str]) -> None:
    rows = replay_rows(tasks)
    assert [row["text"] for row, _ in odd_examples(rows)] == [row["text"] for row in rows if "stray" in row["text"]]


def test_answers_are_those_of_the_last_checkpoint_worst_first(l4: FinishedRun) -> None:
    section = section_text.answers(l4, "r")
    assert [block.title for block in section.blocks if isinstance(block, Fold)] == list(TASKS)
    first = tables(section)[0]
    assert first.caption == "Student 0 after e2enlg, epoch 2: em 26.0; 2 of 3 answers score less than 100"
    assert first.header == ["example", "score", "asked", "answer", "reference"]
    assert [[*row[:2], *row[3:]] for row in first.rows] == [
        ["worst", "0.0", NASTY, "gold"],
        ["fair", "50.0", "nearly", "nearly so\nso"],
    ]
    cut, whole = (row[2] for row in first.rows)
    assert whole == "short\nfair?"
    assert cut == f"{LONG_CONTEXT[:300]} … ({len(LONG_CONTEXT) - 300} more characters)\nworst? {NASTY}"


def test_answers_of_a_run_that_did_not_keep_what_was_asked(tmp_path: Path) -> None:
    first = tables(section_text.answers(read(write_run(tmp_path / "run", parts=Parts(asked=False))), "r"))[0]
    assert first.header == ["example", "score", "answer", "reference"]
    assert list(first.rows[1]) == ["fair", "50.0", "nearly", "nearly so\nso"]


def test_answers_of_a_run_that_kept_no_item_scores_are_those_that_differ(tmp_path: Path) -> None:
    run = read(write_run(tmp_path / "run", parts=Parts(item_scores=False)))
    first = tables(section_text.answers(run, "r"))[0]
    assert first.caption.endswith("2 of 3 answers equal no reference")
    assert [row[:2] for row in first.rows] == [["fair", "–"], ["worst", "–"]]


def test_each_task_s_own_model_answers_where_tasks_are_learned_alone(tmp_path: Path) -> None:
    captions = [table.caption for table in tables(section_text.answers(finished(tmp_path, "single-qa"), "r"))]
    assert [caption.split(",")[0] for caption in captions] == [f"Student 0 after {task}" for task in TASKS]


def test_teachers_of_the_run_stand_beside_its_students(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "l2kd-word")
    assert section_runs.teachers(read(run), "r") is None
    write_run(run.path / "teachers", "single-qa-lm")
    section = section_runs.teachers(read(run), "r")
    assert section is not None
    assert rows_of(tables(section)[0])["woz.en"] == ["6.0", "26.0"]  # after its own stage; after all three


def test_runs_beside_each_other_are_told_apart(tmp_path: Path) -> None:
    runs = [finished(tmp_path / "a", "l4"), finished(tmp_path / "b", "l4"), finished(tmp_path / "c", "multi-qa")]
    assert labels([runs[0], runs[2]]) == ["l4, seed 0", "multi-qa, seed 0"]
    section = section_runs.comparison(runs)
    assert charts(section) == ["comparison-bars", "comparison-tasks"]
    (table,) = tables(section)
    assert table.header == ["variant", "seed", *TASKS, "average", "forgetting", "backward transfer", "wall s"]
    assert list(table.rows[2]) == ["multi-qa", "0", "6.0", "26.0", "46.0", "26.0", "–", "–", "61"]
    assert table.rows[0][0] == "l4 (l4)"


def test_seeds_are_one_row_and_one_bar_and_each_run_is_below(tmp_path: Path) -> None:
    section = section_runs.comparison([finished(tmp_path / str(seed), "l4", seed=seed) for seed in (0, 1)])
    table, fold = section.blocks[1:3]
    assert isinstance(table, Table) and isinstance(fold, Fold)
    assert [row[:3] for row in table.rows] == [["l4", "0, 1", "26.0 ± 0.0"]]
    assert fold.title == "Each of the 2 runs" and not fold.open
    assert [row[:2] for row in tables(section)[1].rows] == [["l4", "0"], ["l4", "1"]]
    drawn = [block for block in section.blocks if isinstance(block, Chart)]
    assert ">l4, 2 seeds: average 46.0, forgetting 0.0<" in str(drawn[0].svg)


def test_each_order_has_a_table_and_bars(tmp_path: Path) -> None:
    turned = finished(tmp_path / "b", "l4", stream=list(reversed(TASKS)))
    section = section_runs.comparison([finished(tmp_path / "a", "l4"), turned])
    assert [table.caption for table in tables(section)] == [" -> ".join(TASKS), " -> ".join(reversed(TASKS))]
    assert charts(section) == ["comparison-bars", "comparison-tasks", "comparison-bars-1", "comparison-tasks-1"]


def test_paired_differences_are_the_last_table_where_they_are_asked_for(tmp_path: Path) -> None:
    runs = [finished(tmp_path / name, name) for name in ("l4", "lamol")]
    section = section_runs.comparison(runs, "lamol")
    assert [len(tables(section)), len(tables(section_runs.comparison(runs)))] == [2, 1]
    assert tables(section)[-1].caption == "Paired differences to lamol"
    assert list(tables(section)[-1].rows[0][:4]) == ["l4", "1", "0.00", "–"]
    assert isinstance(section.blocks[-1], Note) and "none for fewer than 3" in section.blocks[-1].text


def test_the_summary_says_model_sizes_date_and_software(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", peers={"each": [{}, {"model": {"from_scratch": {"layers": 5}}}]})
    write_json(run.path / "manifest.json", read_json(run.path / "manifest.json") | MANIFEST)
    change_summary(run, lambda summary: summary | {"parameters": PARAMETERS})
    facts, sizes = tables(section_scores.summary(read(run), "r"))
    found = {row[0]: row[1] for row in facts.rows}
    assert found["model"].startswith("student 0: ") and "student 1: 5-layer GPT-2 of width" in found["model"]
    assert found["parameters"] == "student 0: 1,234,567; student 1: 12 in adapters, the model's own not counted"
    assert found["started"] == "2026-11-28 21:09:52+00:00"
    assert "torch 2.13.0" in found["software"] and "Python 3.11" in found["software"]
    assert list(sizes.rows[0]) == ["woz.en", "600", "100", "em"]
    markdown = " ".join(run_report(read(run)).split())
    assert [text for text in (*found.values(), "| woz.en | 600 | 100 | em |") if text not in markdown] == []


def test_a_run_of_an_older_version_says_what_it_did_not_record(l4: FinishedRun) -> None:
    facts = rows_of(tables(section_scores.summary(l4, "r"))[0])
    assert facts["parameters"] == facts["started"] == ["not recorded"]


def test_an_older_run_has_its_method_and_stream_for_variant_and_stages(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", variant="l4 (lambda 0)")
    assert read(run).variant == "l4 (lambda 0)"
    as_an_older_version_left_it(run)
    old = read(run)
    assert (old.variant, old.stages) == ("l4", TASKS)
