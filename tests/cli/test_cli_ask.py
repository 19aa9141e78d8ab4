"""``ask``: a checkpoint answers as it did in its run, once or in a dialogue."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from ray_l4.store.run_directory import Cell, RunDirectory
from tests.cli.cli_fixtures import InThisProcess, refused
from tests.run import run_fixtures as small

CONFIG, MODEL = 2, 4
FIXED = "which way does it go ?"


def records(count: int) -> list[dict[str, Any]]:
    """Examples of which some have contexts that are cut."""
    return [{"body": f"item {n} " + "of many words " * (n % 4 * 5), "label": f"way {n % 2}"} for n in range(count)]


def write_task(folder: Path, rows: list[dict[str, Any]]) -> str:
    folder.mkdir()
    for split in ("train", "test"):
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A run of a model for each task: one with a question set, one with its own questions, and an embedded one."""
    folder = tmp_path_factory.mktemp("ask")
    columns = {"context": "body", "answer": "label"}
    various = [row | {"question": f"and number {n % 3} ?"} for n, row in enumerate(records(8))]
    own = {"metric": "em", "columns": columns, "train": "all", "test": "all"}
    stream = [
        {"name": "fixed", "path": write_task(folder / "fixed", records(8)), "question": FIXED} | own,
        {"name": "various", "path": write_task(folder / "various", various)} | own,
        {"name": "mini.woz", "train": 24, "test": 6},
    ]
    config = small.experiment(
        method="single-qa",
        stream=stream,
        model={
            "from_scratch": {"layers": 1, "width": 32, "heads": 2, "positions": 96, "vocabulary": 400},
            "max_length": 40,
        },
        training={"epochs": 4, "batch_size": 2},
        optim={"variant": "torch", "lr": 1e-2, "eps": 1e-8},
        evaluation={"chunk": 4, "reserve": 3},
    )
    return small.complete_run(config, small.cluster("in_process"), folder / "run")[0]


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Function that sets what standard input holds."""
    return lambda text: monkeypatch.setattr(sys, "stdin", io.StringIO(text))


def answers(run: RunDirectory, task: str) -> list[dict[str, Any]]:
    stage = [own.name for own in run.experiment().stream].index(task)
    return pq.read_table(run.path / "predictions" / f"{Cell(stage, 4, 0, task).name}.parquet").to_pylist()


@pytest.mark.parametrize("task", ["fixed", "various", "mini.woz"])
def test_answers_are_those_of_the_run(command: InThisProcess, run: RunDirectory, said: Any, task: str) -> None:
    """A dialogue about the whole test set: contexts alone if the task's question is always the same."""
    expected = answers(run, task)
    asks = len({row["question"] for row in expected}) > 1
    lines = [line for row in expected for line in ([row["context"], row["question"]] if asks else [row["context"]])]
    said("\n".join(lines) + "\n")
    result = command("ask", run.path, "--task", task)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [row["prediction"] for row in expected]
    assert len(set(result.stdout.splitlines())) > 1 or task != "fixed", "the answers tell something"
    assert result.stderr.count("context") >= len(expected)


def test_one_question_prints_the_answer_alone(command: InThisProcess, run: RunDirectory, said: Any) -> None:
    row = answers(run, "various")[5]
    options = ("ask", run.path, "--task", "various", "--context", row["context"])
    assert command(*options, "--question", row["question"]).stdout == f"{row['prediction']}\n"
    said(row["question"])
    assert command(*options, "--question", "-").stdout == f"{row['prediction']}\n"
    fixed = answers(run, "fixed")[3]
    said(fixed["context"])
    assert command("ask", run.path, "--task", "fixed", "--context", "-").stdout == f"{fixed['prediction']}\n"


def test_an_empty_context_keeps_the_last_one(command: InThisProcess, run: RunDirectory, said: Any) -> None:
    row = answers(run, "various")[2]
    said(f"{row['context']}\n{row['question']}\n\n{row['question']}\n")
    result = command("ask", run.checkpoint(1, 4, 0), "--task", "various")
    assert result.stdout.splitlines() == [row["prediction"]] * 2
    said(f"\n{row['question']}")
    begun = command("ask", run.path, "--task", "various", "--context", row["context"])
    assert begun.stdout.splitlines() == [row["prediction"]]


def test_a_blank_question_is_said_and_the_dialogue_goes_on(
    command: InThisProcess, run: RunDirectory, said: Any
) -> None:
    row = answers(run, "various")[0]
    said(f"\n\n{row['context']}\n{row['question']}\n")
    result = command("ask", run.path, "--task", "various")
    assert result.stdout.splitlines() == [row["prediction"]]
    assert "blank" in result.stderr
    long = "word " * 60
    refused(command("ask", run.path, "--task", "various", "--question", long), 3, "the question has")


def test_ctrl_c_ends_a_dialogue_like_any_command(
    command: InThisProcess, run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted(io.StringIO):
        def readline(self, *arguments: Any) -> str:
            raise KeyboardInterrupt

    monkeypatch.setattr(sys, "stdin", Interrupted())
    result = command("ask", run.path, "--task", "various")
    assert (result.returncode, result.stdout) == (130, "")
    assert "Traceback" not in result.stderr


def test_sampled_answers_follow_from_the_seed(command: InThisProcess, run: RunDirectory) -> None:
    options = ("ask", run.path, "--task", "fixed", "--context", "item 3", "--top-k", 30)
    results = [command(*options, "--seed", seed, "--max-new-tokens", 12).stdout for seed in (1, 1, 2, 3, 4)]
    assert results[0] == results[1] and len(set(results)) > 1


def test_sampling_may_be_set_like_any_other_setting(command: InThisProcess, run: RunDirectory) -> None:
    options = ("ask", run.path, "--task", "fixed", "--context", "item 3", "--seed", 2, "--max-new-tokens", 12)
    greedy, sampled = (command(*options, *more).stdout for more in ((), ("--top-k", 30)))
    assert greedy != sampled
    assert command(*options, "--set", "evaluation.top_k=30").stdout == sampled
    assert command(*options, "--set", "evaluation.top_k=30", "--top-k", 1).stdout == greedy


def test_mistakes_are_refused(command: InThisProcess, run: RunDirectory, tmp_path: Path) -> None:
    refused(command("ask", run.path), CONFIG, "--task", "fixed, various, mini.woz")
    refused(command("ask", run.path, "--task", "fixd"), CONFIG, "'fixed'", "fixed, various, mini.woz")
    refused(command("ask", tmp_path, "--task", "fixed"), MODEL, str(tmp_path))
    refused(command("ask", run.path, "--task", "fixed", "--context", "-", "--question", "-"), CONFIG, "standard input")


def test_what_does_not_fit_is_told(run: RunDirectory, command: InThisProcess, caplog: pytest.LogCaptureFixture) -> None:
    """A context is cut, which is said; a question is not."""
    asked = ("ask", run.path, "--task", "various", "--question", "and number 1 ?", "--max-new-tokens", 3)
    assert command(*asked, "--context", "item 1").returncode == 0 and not caplog.messages
    assert command(*asked, "--context", "of many words " * 30).returncode == 0
    assert any("they were cut to the 38 that fit" in message for message in caplog.messages)
    long = command("ask", run.path, "--task", "various", "--question", "and number 1 ? " * 30)
    refused(long, 3, "the question has", "room for", "--max-new-tokens")
    assert "test set" not in long.stderr
