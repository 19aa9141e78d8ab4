"""Chat data and a small instruct model with adapters: it trains, scores, generates and merges."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from ray_l4.store.run_directory import RunDirectory
from ray_l4.text.chat_template import ChatTemplate
from ray_l4.text.tokenizer import TaskTokenizer
from tests.cli.cli_fixtures import IN_PROCESS, InThisProcess, ray_l4, refused
from tests.text import chat_fixtures as chats

pytestmark = pytest.mark.end_to_end

LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LORA = {"rank": 8, "alpha": 32, "dropout": 0.0, "targets": LAYERS}
SYSTEM = {"role": "system", "content": "Answer in one word."}


def turns(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[number % 2], "content": text} for number, text in enumerate(texts)]


TASKS: dict[str, list[dict[str, Any]]] = {
    "capitals": [
        {"messages": [SYSTEM, *turns("What is the capital of France?", "Paris")]},
        {"messages": [SYSTEM, *turns("What is the capital of Italy?", "Rome")]},
        {"messages": [SYSTEM, *turns("What is the capital of France?", "Paris", "capital of Italy?", "Rome")]},
        {"messages": turns("What is the capital of <|im_end|> Italy?", "Rome")},
    ],
    "polite": [
        {"prompt": "Translate cheese", "completion": ["cheese, please", "please, cheese"]},
        {"prompt": "Translate town", "completion": "town, please"},
        {"prompt": turns("Translate word"), "completion": [{"role": "assistant", "content": "word, please"}]},
        {"prompt": [SYSTEM, *turns("Translate one")], "completion": "one, please"},
    ],
}


def write(folder: Path, steps: int = 0, **model: Any) -> Path:
    """Write the data, a model that has learned for ``steps`` and an experiment; return its path."""
    for task, records in TASKS.items():
        (folder / task).mkdir()
        for split in ("train", "test"):
            (folder / task / f"{split}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    chats.save_instruct(folder / "instruct", steps=steps)
    experiment = {
        "method": "lamol",
        "stream": [{"name": task, "path": task, "metric": "em"} for task in TASKS],
        "model": {"name": str(folder / "instruct"), "lora": LORA} | model,
        "training": {"epochs": 50, "batch_size": 4},
        "optim": {"variant": "torch", "lr": 1e-2, "eps": 1e-8},
        "replay": {"ratio": 1.0, "top_k": 1, "max_length": 80},
    }
    (folder / "experiment.yaml").write_text(yaml.safe_dump(experiment))
    return folder / "experiment.yaml"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    folder = tmp_path_factory.mktemp("chat")
    result = ray_l4("run", write(folder, steps=80), "--cluster", IN_PROCESS, "--run-dir", folder / "run")
    assert result.returncode == 0, result.stderr
    return RunDirectory.open(folder / "run")


def losses(run: RunDirectory, stage: int, epoch: int) -> float:
    return float(pq.read_table(run.path / "steps" / f"stage-{stage}.epoch-{epoch}.parquet")["nll_qa"][-1].as_py())


def checkpoint(run: RunDirectory, stage: int = 1) -> Path:
    return run.checkpoint(stage, 50, 0)


def options(run: RunDirectory, task: str) -> Sequence[object]:
    return ("--task", task, "--path", run.path.parent / task, "--metric", "em", "--show", 4)


def test_it_trains_and_scores(finished: RunDirectory) -> None:
    for stage in range(2):
        assert losses(finished, stage, 50) < 0.3 * losses(finished, stage, 1)
    matrix = finished.summary()["score_matrix"]
    (rows,) = matrix.values()
    assert rows[0][0] == rows[1][1] == 100.0, "a task's score after it was learned"


def test_replay_holds_whole_conversations(finished: RunDirectory) -> None:
    """What is generated is a conversation in the template, and is kept as the prompt and the answer that it is."""
    rows = pq.read_table(finished.path / "replay" / "stage-1.parquet").to_pylist()
    valid = [row for row in rows if row["valid"]]
    assert len(valid) >= len(rows) / 2, [row["reason"] for row in rows]
    tokenizer = TaskTokenizer.load(finished.path / "tokenizer")
    for row in valid:
        assert row["ids"][0] == tokenizer.gen["capitals"]
        assert tuple(row["ids"][1 : 1 + len(tokenizer.lm_start)]) == tokenizer.lm_start
        text = tokenizer.hf.decode(row["ids"][1:])
        assert text.startswith("<|im_start|>system\n") and "<|im_end|>\n<|im_start|>assistant\n" in text


def test_it_generates(finished: RunDirectory, command: InThisProcess) -> None:
    result = command("generate", checkpoint(finished, 0), "--task", "capitals", "-n", 3, "--top-k", 1)
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(rows) == 3 and any(row["valid"] for row in rows)
    assert {row["answer"] for row in rows if row["valid"]} <= {"Paris", "Rome"}


def test_a_length_without_room_is_refused(finished: RunDirectory, command: InThisProcess) -> None:
    """The template alone takes more tokens."""
    shortest = TaskTokenizer.load(finished.path / "tokenizer").shortest_generated
    for length, code in ((2, 2), (shortest - 1, 2), (shortest, 0)):
        result = command("generate", checkpoint(finished, 0), "--task", "capitals", "-n", 1, "--max-length", length)
        assert result.returncode == code, result.stderr
        assert ("leave no room for a generated example" in result.stderr) is (code == 2)


def test_ask_answers_as_in_the_run(
    finished: RunDirectory, command: InThisProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the system prompt of the examples, and a dialogue as the earlier turns."""
    answers = pq.read_table(finished.path / "predictions" / "stage-0.epoch-50.student-0.capitals.parquet")
    expected = answers["prediction"].to_pylist()
    asked = ("ask", checkpoint(finished, 0), "--task", "capitals")
    once = command(*asked, "--system", SYSTEM["content"], "--question", "What is the capital of Italy?")
    assert (once.returncode, once.stdout) == (0, f"{expected[1]}\n"), once.stderr
    said = ["", "What is the capital of France?", "capital of Italy?", "", "", "What is the capital of Italy?"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(said)))
    result = command(*asked, "--system", SYSTEM["content"])
    assert result.stdout.splitlines() == [expected[0], expected[2], expected[1]], result.stderr


def test_ask_renders_system_prompt_and_dialogue_as_turns(
    finished: RunDirectory, command: InThisProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendered: list[list[dict[str, str]]] = []
    prompt = ChatTemplate.prompt

    def noted(self: ChatTemplate, asked: list[dict[str, str]]) -> Any:
        rendered.append([*asked])
        return prompt(self, asked)  # type: ignore[arg-type]

    monkeypatch.setattr(ChatTemplate, "prompt", noted)
    monkeypatch.setattr(sys, "stdin", io.StringIO("about Italy\nits capital?\nsure?\n\n\nagain?\n"))
    result = command("ask", checkpoint(finished, 0), "--task", "capitals", "--system", "Be brief.")
    first = result.stdout.splitlines()[0]
    assert len(result.stdout.splitlines()) == 3
    system = {"role": "system", "content": "Be brief."}
    opening = turns("about Italy\nits capital?")
    conversations = [each for each, _ in groupby(each for each in rendered if each[0] == system)]
    assert conversations == [
        [system, *opening],
        [system, *turns("about Italy\nits capital?", first, "sure?")],
        [system, *turns("about Italy\nagain?")],
    ]
    rendered.clear()
    command(
        "ask", checkpoint(finished, 0), "--task", "capitals", "--context", "about Italy", "--question", "its capital?"
    )
    assert opening in rendered, "context and question make one turn"


def test_a_system_prompt_needs_a_chat_template(tmp_path: Path, command: InThisProcess) -> None:
    chats.save_instruct(tmp_path / "plain", template=None, steps=0)
    asked = ("ask", tmp_path / "plain", "--task", "own", "--question", "now?", "--system", "Be brief.")
    refused(command(*asked), 2, "--system", "chat template", "--context")


def test_the_merged_model_gives_the_same_answers(
    finished: RunDirectory, command: InThisProcess, tmp_path: Path
) -> None:
    merged = tmp_path / "merged"
    assert command("merge", checkpoint(finished), merged).returncode == 0
    for number, task in enumerate(TASKS):
        before, after = (
            command("evaluate", model, *options(finished, task)) for model in (checkpoint(finished), merged)
        )
        assert before.returncode == after.returncode == 0, before.stderr + after.stderr
        values = [json.loads(result.stdout) for result in (before, after)]
        assert [[value[name] for name in ("em", "nf1", "nem", "examples")] for value in values] == [
            [values[0][name] for name in ("em", "nf1", "nem", "examples")]
        ] * 2
        said = [[line for line in each.stderr.splitlines() if "prediction:" in line] for each in (before, after)]
        assert said[0] == said[1] and len(said[0]) == 4, "prediction by prediction"
        (rows,) = finished.summary()["score_matrix"].values()
        assert values[0]["em"] == rows[1][number], "as the run has it"


def test_the_template_is_left_out_on_request(tmp_path: Path, command: InThisProcess) -> None:
    path = write(tmp_path, chat_template="none")
    result = command("run", path, "--cluster", IN_PROCESS, "--run-dir", tmp_path / "run", "--set", "training.epochs=1")
    assert result.returncode == 0, result.stderr
    tokenizer = TaskTokenizer.load(tmp_path / "run" / "tokenizer")
    assert tokenizer.chat is None and tokenizer.lm_end == (tokenizer.eos,)
    made = ("evaluate", tmp_path / "run", "--task", "capitals")
    assert command(*made).returncode == 0
    refused(command(*made, "--set", "model.chat_template=auto"), 2, "trained without its chat template", "none")
    copied = ("evaluate", shutil.copytree(RunDirectory.open(tmp_path / "run").checkpoint(1, 1, 0), tmp_path / "copied"))
    task = ("--task", "capitals", "--path", tmp_path / "capitals", "--metric", "em")
    assert command(*copied, *task).returncode == 0, "the default is what the checkpoint has"
    refused(command(*copied, *task, "--set", "model.chat_template=auto"), 2, "trained without its chat template")


def test_a_checkpoint_is_not_used_without_the_template_of_its_run(
    finished: RunDirectory, command: InThisProcess
) -> None:
    for made in (("evaluate",), ("generate",), ("ask", "--question", "What is the capital of Italy?")):
        result = command(*made, checkpoint(finished), "--task", "capitals", "--set", "model.chat_template=none")
        refused(result, 2, "model.chat_template: none", "trained with its chat template", "expected auto")


def test_a_template_that_cannot_be_used_is_refused_before_the_run(tmp_path: Path, command: InThisProcess) -> None:
    path = write(tmp_path)
    (tmp_path / "instruct" / "chat_template.jinja").write_text("{{ raise_exception('no roles here') }}")
    result = command("run", path, "--cluster", IN_PROCESS, "--run-dir", tmp_path / "run")
    assert result.returncode == 4, result.stderr
    assert "no roles here" in result.stderr and "model.chat_template: none" in result.stderr
    assert not (tmp_path / "run").exists()
