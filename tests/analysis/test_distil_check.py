"""Our teachers' answers compared with the published ones, on files written by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from analysis.distil_check import HEADER, Answer, answers, compared, main
from ray_l4.errors import ConfigError, RunDirectoryError
from ray_l4.report.finished_run import FinishedRun
from ray_l4.store.records import write_answers
from tests.report.finished_runs import write_run

TASK = "e2enlg"
TRUE = {"a": "the cat sat", "b": "a dog ran", "c": "two birds sang", "d": "no fish swam"}
PUBLISHED = {"a": "the cat sat", "b": "a dog slept", "c": "two birds sang", "d": "no fish swam"}
OURS = {"a": " the cat sat", "b": "a dog slept", "c": "nothing", "d": "no fish swam"}


def write_converted(folder: Path, split: str, said: Mapping[str, str], **contexts: str) -> None:
    entries = [
        {"paragraphs": [{"context": contexts.get(name, f"context {name}"), "qas": [question(name, answer)]}]}
        for name, answer in said.items()
    ]
    folder.mkdir(exist_ok=True)
    path = folder / f"{TASK}_to_squad-{split}-v2.0.json"
    path.write_text(json.dumps({"data": entries}), encoding="utf-8")


def question(name: str, answer: str) -> dict[str, Any]:
    return {"id": name, "question": "what?", "answers": [{"text": answer}], "is_impossible": False}


@pytest.fixture
def converted(tmp_path: Path) -> Path:
    folder = tmp_path / "converted"
    for split, said in (("train", TRUE), ("distil", PUBLISHED), ("test", TRUE)):
        write_converted(folder, split, said)
    return folder


def new_run(folder: Path, converted: Path, **data: Any) -> FinishedRun:
    write_run(folder, "l2kd-seq", stream=[TASK], train=len(TRUE), data={"converted": str(converted), **data})
    run = FinishedRun.open(folder)
    kept = sorted(OURS)
    write_answers(run.directory, TASK, kept, [OURS[name] for name in kept])
    return run


def test_examples_are_joined_by_their_names(tmp_path: Path, converted: Path) -> None:
    run = new_run(tmp_path / "run", converted)
    found = {one.sample_id: one for one in answers(run, run.experiment.stream[0], converted)}
    assert found.keys() == TRUE.keys()
    assert found["c"] == Answer("c", ours="nothing", published="two birds sang", true="two birds sang")


def test_the_true_answers_are_those_of_the_data_also_where_a_run_learned_published_ones(
    tmp_path: Path, converted: Path
) -> None:
    run = new_run(tmp_path / "run", converted, distil=True)
    assert {one.sample_id: one.true for one in answers(run, run.experiment.stream[0], converted)} == TRUE


def test_only_examples_that_were_answered_count(tmp_path: Path, converted: Path) -> None:
    """An example that does not fit into the model has no answer of ours, but is in the published file."""
    run = new_run(tmp_path / "run", converted)
    write_answers(run.directory, TASK, ["d"], [OURS["d"]])
    assert [one.sample_id for one in answers(run, run.experiment.stream[0], converted)] == ["d"]


def test_shares_and_rouge_of_each_pair() -> None:
    said = [Answer(name, OURS[name], PUBLISHED[name], TRUE[name]) for name in TRUE]
    *shares, ours, published, between = compared(said)
    assert shares == [50.0, 75.0, 75.0]
    # "a dog slept" shares two words of three with the truth, and one pair of words of two.
    nearly = (2 / 3 + 1 / 2 + 2 / 3) / 3
    assert published == pytest.approx(100 * (3 + nearly) / 4)
    assert ours == pytest.approx(100 * (2 + nearly) / 4)
    assert between == pytest.approx(75.0)


def test_the_command_prints_a_row_for_each_run_and_task(
    tmp_path: Path, converted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = new_run(tmp_path / "run", converted)
    assert main([str(run.path), str(run.path), "--converted", str(converted)]) == 0
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == list(HEADER)
    assert lines[2] == lines[3] == ["l2kd-seq, seed 0", TASK, "4", "50.0", "75.0", "75.0", "65.3", "90.3", "75.0"]


def test_answers_that_cannot_be_compared_are_refused(
    tmp_path: Path, converted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = new_run(tmp_path / "run", converted)
    (task,) = run.experiment.stream
    with pytest.raises(ConfigError, match="holds no converted files of e2enlg"):
        answers(run, task, tmp_path)
    write_converted(converted, "distil", PUBLISHED, b="another context")
    with pytest.raises(
        ConfigError, match=r"the distil file does not have example 'b' of e2enlg, or has another context"
    ):
        answers(run, task, converted)
    write_converted(converted, "distil", {name: PUBLISHED[name] for name in "abd"})
    with pytest.raises(ConfigError, match="example 'c' of e2enlg"):
        answers(run, task, converted)
    write_answers(run.directory, TASK, ["z"], ["?"])
    with pytest.raises(RunDirectoryError, match="answers example 'z'"):
        answers(run, task, converted)
    run.directory.answers(TASK).unlink()
    assert main([str(run.path), "--converted", str(converted)]) != 0
    assert "no teacher of this run answered e2enlg" in capsys.readouterr().err
