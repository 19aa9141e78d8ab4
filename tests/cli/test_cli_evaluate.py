"""``evaluate`` and ``generate`` on what a run left: the answers and scores of the run, from its own settings."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from ray_l4.learner.inspection import LoadedModel
from ray_l4.setup.inspected import Inspected
from ray_l4.setup.loaded import load_inspected
from ray_l4.store.atomic import write_json
from ray_l4.store.run_directory import Cell, RunDirectory, RunState, read_json
from tests.cli.cli_fixtures import InThisProcess, refused
from tests.run import run_fixtures as small

CONFIG, DATA, MODEL, RUN_DIRECTORY = 2, 3, 4, 5


def own_data(folder: Path) -> Path:
    """Write a task with columns of its own, no question, several right answers and long contexts."""
    folder.mkdir()
    for split, count in (("train", 24), ("test", 9)):
        rows = [
            {"body": f"item {n} " + "of many words " * (n % 7 * 3), "label": ["up" if n % 2 else "down", "same"]}
            for n in range(count)
        ]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def settings(folder: Path) -> dict[str, Any]:
    """An experiment in which hardly anything that matters to a score has its default."""
    own = {
        "name": "own",
        "path": str(own_data(folder / "data")),
        "metric": "nf1",
        "columns": {"context": "body", "answer": "label"},
        "question": "which way does it go ?",
        "train": 20,
        "test": 7,
    }
    return {
        "stream": [own, {"name": "mini.woz", "train": 24, "test": 6}],
        "data": {"seed": 5},
        "model": {
            "from_scratch": {"layers": 1, "width": 32, "heads": 2, "positions": 96, "vocabulary": 400},
            "max_length": 40,
        },
        "training": {"epochs": 2, "batch_size": 4},
        "optim": {"variant": "torch", "lr": 1e-2, "eps": 1e-8},
        "replay": {"ratio": 0.5, "chunk": 4, "max_length": 30, "top_k": 5, "temperature": 0.8},
        "evaluation": {"when": "epoch", "chunk": 2, "top_k": 4, "reserve": 9, "ban_task_tokens": True},
        "seed": 3,
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A finished run of two students; tests that change it take a copy."""
    folder = tmp_path_factory.mktemp("evaluate")
    finished, _ = small.complete_run(small.experiment(**settings(folder)), small.cluster("in_process"), folder / "run")
    return finished


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A finished run of a model for each task."""
    folder = tmp_path_factory.mktemp("alone")
    config = small.experiment(**settings(folder), method="single-qa")
    return small.complete_run(config, small.cluster("in_process"), folder / "run")[0]


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def values(record: dict[str, Any]) -> dict[str, float]:
    """Return the values of the metric in a line of output."""
    where = ("model", "stage", "epoch", "student", "task", "examples", "headline")
    return {name: value for name, value in record.items() if name not in where}


def test_every_score_of_a_run_is_found_again(command: InThisProcess, run: RunDirectory) -> None:
    """Columns, question, metric, subsets, lengths, reserve and sampling are those of the run's config.yaml."""
    recorded = run.scores()
    checkpoints = sorted({(cell.stage, cell.epoch, cell.student) for cell in recorded})
    result = command("evaluate", "--json", *(run.checkpoint(*place) for place in checkpoints))
    assert result.returncode == 0, result.stderr
    found = {Cell(r["stage"], r["epoch"], r["student"], r["task"]): r for r in lines(result.stdout)}
    assert found.keys() == recorded.keys() and len(found) == 2 * 2 * 2 * 2
    assert {cell: values(record) for cell, record in found.items()} == {
        cell: record["values"] for cell, record in recorded.items()
    }
    assert {record["examples"] for record in found.values()} == {7, 6}
    assert len({str(values(record)) for record in found.values()}) > 3, "the scores differ, so they tell something"


def test_scores_of_peers_that_differ_are_found_again(command: InThisProcess, tmp_path: Path) -> None:
    """All share the length of the peer with the fewest positions; the arithmetic is that of the run."""
    changes = settings(tmp_path)
    changes["training"] = {"epochs": 1, "batch_size": 4}
    changes["model"] |= {"max_length": None, "precision": "bfloat16"}
    changes["peers"] = {"init": "own", "each": [{}, {"model": {"from_scratch": {"positions": 44, "width": 16}}}]}
    differing, _ = small.complete_run(small.experiment(**changes), small.cluster("in_process"), tmp_path / "run")
    result = command("evaluate", differing.path, "--stage", 0, "--json")
    assert result.returncode == 0, result.stderr
    found = {(r["student"], r["task"]): values(r) for r in lines(result.stdout)}
    recorded = differing.scores().items()
    assert found == {(cell.student, cell.task): record["values"] for cell, record in recorded if cell.stage == 0}


def test_scores_of_weights_in_bfloat16_are_found_again(
    command: InThisProcess, monkeypatch: pytest.MonkeyPatch, pretrained: Path, tmp_path: Path
) -> None:
    """The weights are loaded in the type of the run, rounded or not."""
    changes = settings(tmp_path)
    changes["model"] = {"name": str(pretrained), "max_length": 60, "dtype": "bfloat16", "lora": {"rank": 2}}
    halved, _ = small.complete_run(small.experiment(**changes), small.cluster("in_process"), tmp_path / "run")
    types = []

    def noted(found: Inspected, device: str) -> LoadedModel:
        model = load_inspected(found, device)
        types.append({str(weights.dtype) for name, weights in model.model.named_parameters() if "lora" not in name})
        return model

    monkeypatch.setattr("ray_l4.setup.loaded.load_inspected", noted)
    result = command("evaluate", halved.path, "--json")
    assert result.returncode == 0, result.stderr
    last = {
        (cell.student, cell.task): r["values"]
        for cell, r in halved.scores().items()
        if cell.stage == 1 and cell.epoch == 2
    }
    assert {(r["student"], r["task"]): values(r) for r in lines(result.stdout)} == last and len(last) == 4
    assert len(types) == 2 and all("torch.bfloat16" in own for own in types), "adapters alone are float32"


def test_a_run_directory_is_a_table_of_its_students_final_scores(command: InThisProcess, run: RunDirectory) -> None:
    before = sorted(path for path in run.path.rglob("*"))
    result = command("evaluate", run.path)
    assert result.returncode == 0, result.stderr
    header, _, *rows = ([cell.strip() for cell in row.strip("|").split("|")] for row in result.stdout.splitlines())
    assert header == ["model", "own (nf1)", "mini.woz (joint_goal_em)", "average"]
    final = run.summary()["final"]
    assert rows == [
        [f"{run.path}: student {student} after mini.woz, epoch 2", *(f"{own:.1f}" for own in (*each, sum(each) / 2))]
        for student in (0, 1)
        for each in [[final[str(student)][task] for task in ("own", "mini.woz")]]
    ]
    assert sorted(run.path.rglob("*")) == before, "nothing is written into the run directory"


def test_checkpoints_of_a_run_can_be_selected(command: InThisProcess, run: RunDirectory, tmp_path: Path) -> None:
    options = ("--stage", 0, "--epoch", 1, "--student", 1, "--output", tmp_path / "scores.jsonl")
    result = command("evaluate", run.path, *options, "--task", "own", "--task", "mini.woz", "--json")
    found = lines(result.stdout)
    assert [(r["stage"], r["epoch"], r["student"], r["task"]) for r in found] == [
        (0, 1, 1, "own"),
        (0, 1, 1, "mini.woz"),
    ]
    assert lines((tmp_path / "scores.jsonl").read_text()) == found


def test_models_of_single_tasks_are_scored_on_their_own(command: InThisProcess, alone: RunDirectory) -> None:
    result = command("evaluate", alone.path, "--json")
    assert result.returncode == 0, result.stderr
    found = {(r["stage"], r["task"]): values(r) for r in lines(result.stdout)}
    expected = {(cell.stage, cell.task): record["values"] for cell, record in alone.scores().items() if cell.epoch == 2}
    assert found == expected and found.keys() == {(0, "own"), (1, "mini.woz")}


def test_options_replace_the_settings_of_the_run(command: InThisProcess, run: RunDirectory) -> None:
    folder = run.checkpoint(1, 2, 0)
    result = command("evaluate", folder, "--task", "own", "--metric", "em", "--limit", 3, "--top-k", 1, "--show", 2)
    (record,) = lines(result.stdout)
    assert (record["examples"], record["headline"]) == (3, "em")
    assert result.stderr.count("prediction:") == result.stderr.count("question:  ") == 2
    assert "which way does it go ?" in result.stderr
    other = command("evaluate", folder, "--task", "own", "--set", "data.seed=6", "--set", "stream.0.test=4")
    assert lines(other.stdout)[0]["examples"] == 4


def test_a_copied_checkpoint_works_from_options_and_says_what_it_assumes(
    command: InThisProcess, run: RunDirectory, tmp_path: Path
) -> None:
    shutil.copytree(run.checkpoint(1, 2, 0), tmp_path / "copy")
    data = run.experiment().stream[0].path
    own = ("--path", data, "--column", "context=body", "--column", "answer=label", "--question", "which way ?")
    refused(command("evaluate", tmp_path / "copy", "--task", "own"), CONFIG, "own, mini.woz", "--path")
    refused(command("evaluate", tmp_path / "copy"), CONFIG, "--task", "own, mini.woz")
    result = command("evaluate", tmp_path / "copy", "--task", "own", "--metric", "nf1", *own)
    assert result.returncode == 0, result.stderr
    assert "belongs to no run" in result.stderr and "96 tokens" in result.stderr
    assert lines(result.stdout)[0]["examples"] == 9
    config = run.path / "config.yaml"
    asked = ("--task", "mini.woz", "--experiment", config, "--top-k", 1)
    copied, original = (command("evaluate", path, *asked) for path in (tmp_path / "copy", run.checkpoint(1, 2, 0)))
    assert values(lines(copied.stdout)[0]) == values(lines(original.stdout)[0])
    assert "belongs to no run" not in copied.stderr


def test_generate_samples_as_the_run_does(command: InThisProcess, run: RunDirectory) -> None:
    folder = run.checkpoint(1, 2, 0)
    options = ("--task", "own", "-n", 6)
    usual = command("generate", folder, *options)
    assert usual.returncode == 0, usual.stderr
    spelled = ("--top-k", 5, "--temperature", 0.8, "--max-length", 30, "--seed", 3)
    assert command("generate", folder, *options, *spelled).stdout == usual.stdout
    assert command("generate", run.path, *options).stdout == usual.stdout, "student 0's last checkpoint"
    assert command("generate", folder, *options, "--top-k", 50, "--temperature", 20).stdout != usual.stdout
    refused(command("generate", folder, *options, "--max-length", 97), MODEL, "97 tokens", "96 positions")
    refused(command("generate", folder, "--task", "mini.wo"), CONFIG, "own, mini.woz", "'mini.woz'")
    refused(command("generate", folder), CONFIG, "--task", "own, mini.woz")


# --- models that no run has changed


def test_an_untouched_model_is_scored_as_a_run_would_begin_with_it(
    command: InThisProcess, run: RunDirectory, tmp_path: Path
) -> None:
    """The zero row of a table: a run that learns with a rate of nearly nought scores the same."""
    changes = settings(tmp_path) | {
        "optim": {"variant": "torch", "lr": 1e-30, "weight_decay": 0},
        "replay": {"ratio": 0},
    }
    changes["evaluation"] = {"chunk": 2, "reserve": 9}
    still, _ = small.complete_run(small.experiment(**changes), small.cluster("in_process"), tmp_path / "still")
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump(changes))
    result = command("evaluate", "--experiment", tmp_path / "experiment.yaml", "--json")
    assert result.returncode == 0, result.stderr
    found = {r["task"]: values(r) for r in lines(result.stdout)}
    assert found == {
        cell.task: r["values"] for cell, r in still.scores().items() if (cell.stage, cell.student) == (0, 0)
    }


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small model that belongs to no run and has no task tokens."""
    from transformers import GPT2Config, GPT2LMHeadModel

    from ray_l4.text.base_tokenizer import train_base

    folder = tmp_path_factory.mktemp("pretrained") / "tiny"
    tokenizer = train_base(["find me pricey food in the east", "what is the change in state?"], 300)
    sizes = {"vocab_size": len(tokenizer), "n_positions": 64, "n_embd": 16, "n_layer": 1, "n_head": 2}
    GPT2LMHeadModel(GPT2Config(**sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_any_models_folder_is_a_row_beside_a_run(command: InThisProcess, run: RunDirectory, pretrained: Path) -> None:
    result = command("evaluate", pretrained, run.path, "--experiment", run.path / "config.yaml", "--student", 0)
    assert result.returncode == 0, result.stderr
    assert [row.split("|")[1].strip() for row in result.stdout.splitlines()[2:]] == [
        f"{pretrained}, untouched",
        f"{run.path}: student 0 after mini.woz, epoch 2",
    ]
    single = command("evaluate", pretrained, "--task", "mini.woz", "--limit", 4)
    assert lines(single.stdout)[0]["examples"] == 4
    assert "at most 64 tokens" in single.stderr


# --- mistakes


def test_what_is_no_model_is_refused_by_name(command: InThisProcess, run: RunDirectory, tmp_path: Path) -> None:
    inside = run.path / "checkpoints" / "stage-1"
    refused(command("evaluate", inside), MODEL, "not a checkpoint", str(run.path), "--stage")
    refused(command("evaluate", run.path.with_name("rnu")), MODEL, "no such folder", f"Did you mean {run.path}?")
    unlike = command("evaluate", run.path.with_name("zzzz"))
    refused(unlike, MODEL, "no such folder")
    assert "Known" not in unlike.stderr and "No other name" not in unlike.stderr
    refused(command("evaluate", "~nosuchuser/run"), MODEL, "no such folder", "~nosuchuser/run")
    refused(command("evaluate", tmp_path, "--task", "own"), MODEL, str(tmp_path), "neither a run directory")
    refused(command("evaluate", run.path, "--stage", 7), RUN_DIRECTORY, "stage 7", "stages 0, 1", "students 0, 1")


@pytest.mark.parametrize("options", [("--stage", 0), ("--epoch", 1), ("--student", 1), ("--stage", 1, "--epoch", 1)])
def test_another_checkpoint_than_the_one_named_is_refused(
    command: InThisProcess, run: RunDirectory, options: tuple[object, ...]
) -> None:
    named = run.checkpoint(1, 2, 0)
    refused(command("evaluate", named, *options), CONFIG, str(named), "stage 1, epoch 2, student 0", f": {run.path}\n")


def test_a_checkpoint_may_be_named_twice_over(command: InThisProcess, run: RunDirectory) -> None:
    options = ("--stage", 1, "--epoch", 2, "--student", 0, "--task", "mini.woz")
    assert command("evaluate", run.checkpoint(1, 2, 0), *options).returncode == 0


@pytest.mark.parametrize("option", ["--stage", "--epoch"])
def test_a_model_of_no_run_has_no_stages_and_epochs(command: InThisProcess, pretrained: Path, option: str) -> None:
    result = command("evaluate", pretrained, "--task", "mini.woz", "--limit", 1, option, 1)
    refused(result, CONFIG, "belongs to no run", option)


@pytest.mark.parametrize(
    "words", [("evaluate", "rr"), ("ask", "rr"), ("generate", "rr"), ("evaluate", "rr", "--task", "x")]
)
@pytest.mark.parametrize("reachable", [False, True])
def test_a_mistyped_run_without_a_slash_is_said_to_be_no_folder(
    command: InThisProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], reachable: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rrr").mkdir()
    monkeypatch.setattr("ray_l4.text.model_location._hub_is_reachable", lambda: reachable)
    result = command(*words)
    refused(
        result,
        CONFIG if reachable else MODEL,
        str(tmp_path / "rr"),
        "mean rrr?",
    )


def test_other_data_is_read_whole(command: InThisProcess, run: RunDirectory, tmp_path: Path) -> None:
    """The number of test examples in the run's settings was chosen for the run's own data."""
    other = own_data(tmp_path / "other")
    lines_of = (other / "test.jsonl").read_text().splitlines()
    (other / "test.jsonl").write_text("\n".join(lines_of[:4]))
    result = command("evaluate", run.checkpoint(1, 2, 0), "--task", "own", "--path", other)
    assert result.returncode == 0, result.stderr
    assert lines(result.stdout)[0]["examples"] == 4
    rows = [json.dumps({"context": "a", "question": "q", "answer": "b"}) for _ in range(8)]
    (other / "test.jsonl").write_text("\n".join(rows))
    result = command("evaluate", run.checkpoint(1, 2, 0), "--task", "mini.woz", "--path", other, "--metric", "em")
    assert result.returncode == 0, result.stderr
    assert lines(result.stdout)[0]["examples"] == 8


def test_an_output_that_cannot_be_written_is_refused_before_the_work(
    command: InThisProcess, run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with monkeypatch.context() as loading:
        loading.setattr("ray_l4.setup.loaded.load_inspected", None)
        refused(command("evaluate", run.path, "--output", tmp_path), CONFIG, f"--output {tmp_path}: is a folder")
        below = tmp_path / "file" / "scores.jsonl"
        refused(command("evaluate", run.path, "--output", below), CONFIG, f"--output {tmp_path}/file", "is a file")
    new = tmp_path / "new" / "scores.jsonl"
    result = command("evaluate", run.path, "--student", 0, "--task", "mini.woz", "--output", new)
    assert result.returncode == 0, result.stderr
    assert lines(new.read_text()) == lines(result.stdout)


def test_an_unknown_task_is_refused_with_those_of_the_run(command: InThisProcess, run: RunDirectory) -> None:
    refused(command("evaluate", run.path, "--task", "onw"), CONFIG, "--task onw", "own, mini.woz", "'own'")
    refused(command("evaluate", run.path, "--metric", "em"), CONFIG, "--metric", "--task")
    refused(command("evaluate", run.path, "--device", "gpu"), CONFIG, "auto, cpu, cuda")


def test_a_run_without_a_finished_stage_has_nothing_to_evaluate(
    command: InThisProcess, run: RunDirectory, tmp_path: Path
) -> None:
    shutil.copytree(run.path, tmp_path / "run")
    RunDirectory(tmp_path / "run").save_state(RunState(stages_done=0))
    refused(command("evaluate", tmp_path / "run"), RUN_DIRECTORY, "no stage of this run has finished", "ray-l4 resume")
    RunDirectory(tmp_path / "run").save_state(RunState(stages_done=1))
    result = command("evaluate", tmp_path / "run", "--json")
    assert {record["stage"] for record in lines(result.stdout)} == {0}


def test_a_missing_folder_of_data_is_reported_with_its_path(
    command: InThisProcess, run: RunDirectory, tmp_path: Path
) -> None:
    refused(command("evaluate", run.path, "--task", "own", "--path", tmp_path / "gone"), DATA, str(tmp_path / "gone"))


def test_generate_is_as_long_as_what_the_checkpoint_has_learned(
    command: InThisProcess, run: RunDirectory, tmp_path: Path
) -> None:
    copied = RunDirectory(shutil.copytree(run.path, tmp_path / "run"))
    config = yaml.safe_load((copied.path / "config.yaml").read_text())
    config["replay"]["max_length"] = None
    (copied.path / "config.yaml").write_text(yaml.safe_dump(config))
    manifest = read_json(copied.path / "manifest.json")
    write_json(copied.path / "manifest.json", manifest | {"longest_sequences": {"own": 4, "mini.woz": 6}})
    for stage, length in ((0, 4), (1, 6)):
        words = ("generate", copied.checkpoint(stage, 2, 0), "--task", "own", "-n", 6, "--temperature", 20)
        assert (usual := command(*words)).returncode == 0, usual.stderr
        assert usual.stdout == command(*words, "--max-length", length).stdout
        assert usual.stdout != command(*words, "--max-length", length - 2).stdout
