"""A run that is extended ends like the run that knew all its tasks from the beginning."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from rich.console import Console
from transformers import GPT2Config

from ray_l4.config.cluster import ClusterConfig
from ray_l4.config.experiment import ExperimentConfig
from ray_l4.config.stream import TaskConfig
from ray_l4.errors import ConfigError, DataError, RunDirectoryError
from ray_l4.methods import METHODS
from ray_l4.run import execute
from ray_l4.store import extension
from ray_l4.store.checkpoints import checkpoints
from ray_l4.store.promotion import decide
from ray_l4.store.run_directory import RunDirectory
from ray_l4.store.states import newest_step
from ray_l4.text.tokenizer import TaskTokenizer
from tests.learner import adapter_fixtures as adapted
from tests.run import run_fixtures as small

IN_PROCESS = small.cluster("in_process")
TASKS = [
    {"name": "mini.rest", "train": 24, "test": 6},
    {"name": "mini.woz", "train": 16, "test": 6},
    {"name": "mini.sql", "train": 16, "test": 6},
    {"name": "mini.rest", "train": 12},
]
"""The last one comes back."""
QUICK = ("l4", "lamol", "er", "ewc", "agem", "lwf", "l2kd-word", "l2kd-seq", "single-qa", "derpp", "olora")
"""Methods that are tested in a quick run, too: one for each way to go on."""
EXTENSIBLE = [
    pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow)
    for name, method in METHODS.items()
    if not method.kind.joint
]
SILENT = Console(quiet=True)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretrained model, so that the tokeniser does not depend on the tasks."""
    folder = tmp_path_factory.mktemp("base") / "base"
    adapted.save_base(folder, GPT2Config(n_embd=32, n_layer=1, n_head=2, n_positions=128))
    return folder


def experiment(
    base: Path, method: str, stream: Sequence[dict[str, Any]], tokens: int = 5, **more: Any
) -> ExperimentConfig:
    """``tokens``: task tokens, used and spare."""
    spare = tokens - len({item["name"] for item in stream})
    model: dict[str, Any] = {"name": str(base), "spare_task_tokens": spare, "max_length": 128}
    if METHODS[method].needs_adapters:
        model["lora"] = {"rank": 2}
    changes = {"model": model, "stream": list(stream), "training": {"epochs": 1, "batch_size": 4}, **more}
    return small.quick(method, **changes)


def run(config: ExperimentConfig, folder: Path, profile: ClusterConfig = IN_PROCESS) -> RunDirectory:
    execute.run(config, profile, folder, "ray-l4 run", SILENT)
    return RunDirectory.open(folder)


def extend(directory: RunDirectory, *items: dict[str, Any], profile: ClusterConfig = IN_PROCESS) -> None:
    given = [TaskConfig.model_validate(item) for item in items]
    execute.extend(directory, given, profile, "ray-l4 extend", SILENT)


def same(one: RunDirectory, other: RunDirectory) -> bool:
    """Whether two runs have the same checkpoints, scores, figures and replay."""
    summaries = [{key: own.summary()[key] for key in COMPARED} for own in (one, other)]
    return (
        small.weights(one) == small.weights(other)
        and small.scores(one) == small.scores(other)
        and summaries[0] == summaries[1]
    )


COMPARED = ("stream", "stages", "learned", "score_matrix", "final", "forgetting", "backward_transfer", "replay")


@pytest.mark.parametrize("method", EXTENSIBLE)
def test_extending_by_a_task_ends_like_the_run_on_all_tasks(base: Path, tmp_path: Path, method: str) -> None:
    whole = run(experiment(base, method, TASKS[:3]), tmp_path / "whole")
    extended = run(experiment(base, method, TASKS[:2]), tmp_path / "extended")
    extend(extended, TASKS[2])
    assert same(extended, whole)


def test_three_extensions_in_a_row_the_last_one_by_a_task_that_comes_back(base: Path, tmp_path: Path) -> None:
    whole = run(experiment(base, "l4", TASKS), tmp_path / "whole")
    extended = run(experiment(base, "l4", TASKS[:1]), tmp_path / "extended")
    for item in TASKS[1:]:
        extend(extended, item)
    assert same(extended, whole)
    summary = extended.summary()
    assert summary["stages"] == ["mini.rest", "mini.woz", "mini.sql", "mini.rest (2)"]
    assert summary["stream"] == ["mini.rest", "mini.woz", "mini.sql"]
    assert [len(row) for row in summary["score_matrix"]["0"]] == [3] * 4
    commands = extended.manifest()["extensions"]
    assert [own["items"] for own in commands] == [["mini.woz"], ["mini.sql"], ["mini.rest (2)"]]
    replayed = pq.read_table(extended.replay(3))["task"].to_pylist()
    assert set(replayed) == {"mini.woz", "mini.sql"}, "all tasks but the one that comes back"


@pytest.mark.parametrize("method", ["l4", "lamol", "er", "ewc", "l2kd-word", "derpp", "olora"])
def test_on_ray_it_ends_like_in_one_process(base: Path, tmp_path: Path, ray_cluster: None, method: str) -> None:
    whole = run(experiment(base, method, TASKS[:3]), tmp_path / "whole")
    profile = small.cluster("object_store", ray={"address": "auto"})
    extended = run(experiment(base, method, TASKS[:2]), tmp_path / "extended")
    extend(extended, TASKS[2], profile=profile)
    assert same(extended, whole)


def test_the_data_of_what_was_learned_need_not_be_there(base: Path, tmp_path: Path) -> None:
    """Of a method that replays real examples, too: it has kept them."""
    own = [own_task(tmp_path / name, name) for name in ("first", "second", "third")]
    capacity = {"replay": {"ratio": 1.0, "capacity": 10}}
    whole = run(experiment(base, "er", own, **capacity), tmp_path / "whole")
    extended = run(experiment(base, "er", own[:2], **capacity), tmp_path / "extended")
    for name in ("first", "second"):
        shutil.rmtree(tmp_path / name)
    extend(extended, own[2])
    assert same(extended, whole)
    assert pq.read_table(extended.stored_examples("first")).num_rows == 10, "no more than the reservoir can hold"


def test_the_best_epoch_of_every_stage_and_only_the_last_checkpoints(base: Path, tmp_path: Path) -> None:
    """Earlier checkpoints are gone, so a new task cannot be scored on them, and nothing else is missing."""
    settings = {
        "evaluation": {"validation": 0.25, "when": "epoch"},
        "checkpoint": {"keep": "last"},
        "training": {"epochs": 2, "batch_size": 4},
    }
    whole = run(experiment(base, "l4", TASKS[:3], **settings), tmp_path / "whole")
    extended = run(experiment(base, "l4", TASKS[:2], **settings), tmp_path / "extended")
    extend(extended, TASKS[2])
    assert small.weights(extended) == small.weights(whole)
    found, expected = extended.summary(), whole.summary()
    assert found["final"] == expected["final"] and found["validation"] == expected["validation"]
    assert [row[:2] for row in found["score_matrix"]["0"]] == [row[:2] for row in expected["score_matrix"]["0"]]
    assert found["score_matrix"]["0"][0][2] is None, "its checkpoint had been removed"
    assert None not in found["score_matrix"]["0"][1]


def own_task(folder: Path, name: str) -> dict[str, Any]:
    """A task of 16 examples in a folder."""
    folder.mkdir()
    for split, count in (("train", 16), ("test", 4)):
        rows = [{"context": f"{name} {n}", "question": "which ?", "answer": f"{name[0]} {n % 3}"} for n in range(count)]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return {"name": name, "path": str(folder), "metric": "em"}


@pytest.mark.parametrize("model", [{}, {"lora": {"rank": 2}}])
@pytest.mark.parametrize("method", ["l4", "ewc"])
def test_the_vocabulary_grows_when_no_token_is_spare(
    base: Path, tmp_path: Path, method: str, model: dict[str, Any]
) -> None:
    config = experiment(base, method, TASKS[:1], tokens=1)
    config = config.model_copy(update={"model": config.model.model_validate(config.model.model_dump() | model)})
    one, other = (run(config, tmp_path / name) for name in ("one", "other"))
    size = TaskTokenizer.load(one.path / "tokenizer").size
    before = small.scores(one)
    extend(one, *TASKS[1:3])
    extend(other, TASKS[1])
    extend(other, TASKS[2])
    tokenizer = TaskTokenizer.load(one.path / "tokenizer")
    assert tokenizer.size == size + 2
    assert [tokenizer.gen[task] for task in ("mini.woz", "mini.sql")] == [size, size + 1]
    assert tokenizer.gen == TaskTokenizer.load(other.path / "tokenizer").gen
    assert {name: values for name, values in small.scores(one).items() if name in before} == before
    matrix = one.summary()["score_matrix"]["0"]
    assert all(score is not None for row in matrix for score in row), "earlier checkpoints are scored on new tasks"


def test_a_run_that_was_interrupted_goes_on_and_is_extended(base: Path, tmp_path: Path) -> None:
    whole = run(experiment(base, "l4", TASKS[:3]), tmp_path / "whole")
    extended = interrupted(experiment(base, "l4", TASKS[:2]), tmp_path / "extended")
    extend(extended, TASKS[2])
    assert same(extended, whole)


def interrupted(config: ExperimentConfig, folder: Path) -> RunDirectory:
    """A run that was stopped in its second stage, with a state."""
    config = config.model_copy(update={"checkpoint": config.checkpoint.model_copy(update={"every_steps": 1})})
    setup, directory = small.new_run(config, IN_PROCESS, folder)
    session = small.start(setup, IN_PROCESS, directory)
    try:
        while not newest_step(directory, 1):
            assert not session.wait(0.001), "the run ended before it could be stopped"
    finally:
        session.close()
    assert directory.state().stages_done == 1 and not directory.has_finished()
    return directory


def test_a_run_under_way_is_finished_first_if_its_models_have_to_grow(base: Path, tmp_path: Path) -> None:
    undisturbed = run(experiment(base, "l4", TASKS[:2], tokens=2), tmp_path / "undisturbed")
    extended = interrupted(experiment(base, "l4", TASKS[:2], tokens=2), tmp_path / "extended")
    extend(extended, TASKS[2])
    extend(undisturbed, TASKS[2])
    assert same(extended, undisturbed)


def test_what_an_attempt_has_left_of_another_task_of_the_name_is_not_used(base: Path, tmp_path: Path) -> None:
    """The first attempt ends after it has written the test set, and before the extension is recorded."""
    old, new = (own_task(tmp_path / folder, "mine") for folder in ("old", "new"))
    (tmp_path / "old" / "test.jsonl").write_text('{"context": "old", "question": "which ?", "answer": "o"}')
    whole = run(experiment(base, "er", [TASKS[0], new]), tmp_path / "whole")
    extended = run(experiment(base, "er", TASKS[:1]), tmp_path / "extended")

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as broken, pytest.raises(KeyboardInterrupt):
        broken.setattr(execute, "record_extension", die)
        extend(extended, old)
    assert extended.test_examples("mine").is_file()
    extend(extended, new)
    assert same(extended, whole)
    assert pq.read_table(extended.test_examples("mine")).num_rows == 4


@pytest.mark.parametrize(
    ("cut", "again"), [("write_record", "resume"), ("_write_config", "resume"), ("_write_config", "extend")]
)
def test_an_extension_that_was_cut_off_is_finished_or_has_not_begun(
    base: Path, tmp_path: Path, cut: str, again: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(experiment(base, "lamol", TASKS[:3]), tmp_path / "whole")
    extended = run(experiment(base, "lamol", TASKS[:2]), tmp_path / "extended")

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken, pytest.raises(KeyboardInterrupt):
        broken.setattr(extension, cut, die)
        extend(extended, TASKS[2])
    if again == "extend":
        extend(extended, TASKS[2])
    else:
        execute.resume(extended, IN_PROCESS, SILENT)
    if cut == "write_record":
        assert extended.summary()["stages"] == ["mini.rest", "mini.woz"], "its result is written again"
        extend(extended, TASKS[2])
    assert same(extended, whole)


def test_a_plan_on_top_of_an_extension_that_was_cut_off_is_refused(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extended = run(experiment(base, "lamol", TASKS[:1]), tmp_path / "extended")

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken, pytest.raises(KeyboardInterrupt):
        broken.setattr(extension, "_write_config", die)
        extend(extended, TASKS[1])
    before = (extended.path / "config.yaml").read_bytes()
    with pytest.raises(RunDirectoryError, match=rf"killed while it recorded.*ray-l4 resume {extended.path}"):
        execute.extension_plan(extended, [TaskConfig.model_validate(TASKS[2])], IN_PROCESS)
    assert (extended.path / "config.yaml").read_bytes() == before


def test_an_extension_that_is_stopped_before_it_is_recorded_says_how_to_begin_it_again(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extended = run(experiment(base, "lamol", TASKS[:1]), tmp_path / "extended")

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken, pytest.raises(KeyboardInterrupt):
        broken.setattr(execute, "prepare_again", die)
        extend(extended, TASKS[1])
    assert "to continue: ray-l4 extend" in extended.log("command").read_text()


def test_settings_of_a_stage_differ_from_those_of_the_others(base: Path, tmp_path: Path) -> None:
    own = {"training": {"epochs": 3, "batch_size": 8}, "optim": {"lr": 1e-3}, "replay": {"ratio": 0.5}}
    items = [*TASKS[:1], {**TASKS[1], "settings": own}]
    whole = run(experiment(base, "l4", items), tmp_path / "whole")
    extended = run(experiment(base, "l4", items[:1]), tmp_path / "extended")
    extend(extended, items[1])
    assert same(extended, whole)
    rows = [row for row in extended.step_figures() if row["student"] == 0 and row["stage"] == 1]
    assert max(row["epoch"] for row in rows) == 3 and 0 < max(row["lr"] for row in rows) <= 1e-3
    assert len(pq.read_table(extended.replay(1))) == 8 and rows[0]["samples"] == 8
    assert extended.checkpoint(1, 3, 0).is_dir() and extended.checkpoint(0, 1, 0).is_dir()


def test_what_cannot_be_extended_says_so_and_stays_as_it_is(base: Path, tmp_path: Path) -> None:
    joint = run(experiment(base, "multi-qa", TASKS[:2]), tmp_path / "joint")
    before = contents(joint)
    with pytest.raises(ConfigError, match="multi-qa learns all tasks at once, so a run of it cannot be extended"):
        extend(joint, TASKS[2])
    lamol = run(experiment(base, "lamol", TASKS[:1]), tmp_path / "lamol")
    unharmed = contents(lamol)
    with pytest.raises(ConfigError, match=r"Unknown task 'mini\.wzo'"):
        extend(lamol, {"name": "mini.wzo"})
    with pytest.raises(DataError, match="nowhere"):
        extend(lamol, {"name": "own", "path": str(tmp_path / "nowhere"), "metric": "em"})
    with pytest.raises(ConfigError, match="comes back with another metric"):
        extend(lamol, {"name": "mini.rest", "metric": "em"})
    assert contents(joint) == before and contents(lamol) == unharmed


def contents(directory: RunDirectory) -> dict[str, bytes]:
    """The files of a run but for its logs."""
    files = (path for path in directory.path.rglob("*") if path.is_file())
    return {
        str(path.relative_to(directory.path)): path.read_bytes()
        for path in files
        if path.parent.name != "logs" and not path.name.startswith(".lock")
    }


def test_a_damaged_stage_whose_data_is_gone_ends_with_what_is_missing(base: Path, tmp_path: Path) -> None:
    own = [own_task(tmp_path / name, name) for name in ("first", "second")]
    extended = run(experiment(base, "lamol", own), tmp_path / "run")
    shutil.rmtree(tmp_path / "second")
    shutil.rmtree(extended.checkpoint(1, 1, 0))
    with pytest.raises(DataError, match="second"):
        extend(extended, TASKS[0])
    assert extended.summary()["stages"] == ["first", "second"], "nothing was changed"


def test_a_plan_says_what_would_be_learned_and_writes_nothing(base: Path, tmp_path: Path) -> None:
    lamol = run(experiment(base, "lamol", TASKS[:2], tokens=2), tmp_path / "lamol")
    before = contents(lamol)
    items = [
        TaskConfig.model_validate(item) for item in (*TASKS[2:], {**TASKS[1], "settings": {"training": {"epochs": 7}}})
    ]
    plan = execute.extension_plan(lamol, items, IN_PROCESS)
    assert "2 of 2 stages done; 3 stages to be added" in plan
    assert "stage 2: mini.sql, 16 training examples, 1 epoch; replays mini.rest, mini.woz" in plan
    assert "stage 3: mini.rest (2), 12 training examples, 1 epoch; replays mini.woz, mini.sql" in plan
    assert "stage 4: mini.woz (2), 16 training examples, 7 epochs; replays mini.rest, mini.sql" in plan
    assert "the models' vocabulary grows" in plan
    assert contents(lamol) == before


def test_teachers_of_another_run_have_to_be_extended_first(base: Path, tmp_path: Path) -> None:
    teachers = run(experiment(base, "single-qa-lm", TASKS[:1]), tmp_path / "teachers")
    config = experiment(base, "l2kd-word", TASKS[:1], teachers={"run": str(teachers.path)})
    taught = run(config, tmp_path / "taught")
    with pytest.raises(RunDirectoryError, match=r"has no teacher of mini\.woz. Extend it first, by the same data"):
        extend(taught, TASKS[1])
    extend(teachers, TASKS[1])
    extend(taught, TASKS[1])
    assert taught.summary()["stages"] == ["mini.rest", "mini.woz"]


def test_corrections_that_were_interrupted_are_resumed_from_config_yaml(base: Path, tmp_path: Path) -> None:
    """All that they have from the first item of their task is written down there."""
    own = own_task(tmp_path / "own", "mine") | {"question": "which one ?", "train": 10}
    again = {"name": "mine", "path": own_task(tmp_path / "again", "mine")["path"]}
    whole = run(experiment(base, "lamol", [own, again]), tmp_path / "whole")
    extended = run(experiment(base, "lamol", [own]), tmp_path / "extended")

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as broken, pytest.raises(KeyboardInterrupt):
        broken.setattr(execute, "open_session", die)
        extend(extended, again)
    assert list(extended.experiment().items.values()) == extended.experiment().stream
    assert [item.metric for item in extended.experiment().stream] == ["em", "em"]
    extend(extended, again)  # the same command again goes on with it
    assert same(extended, whole)
    assert extended.manifest()["training_examples"] == {"mine": 10, "mine (2)": 16}


@pytest.mark.parametrize("method", ["l2kd-seq", "lwf"])
def test_more_tokens_than_before_and_none_of_them_in_answers(base: Path, tmp_path: Path, method: str) -> None:
    """Checkpoints of before, and the teachers of earlier tasks, lack the rows of later tokens."""
    config = experiment(base, method, TASKS[:1], tokens=1, evaluation={"ban_task_tokens": True})
    grown = run(config, tmp_path / "grown")
    extend(grown, *TASKS[1:3])
    assert all(score is not None for row in grown.summary()["score_matrix"]["0"] for score in row)


def test_the_served_checkpoint_stays_though_only_the_last_ones_are_kept(base: Path, tmp_path: Path) -> None:
    served = run(experiment(base, "lamol", TASKS[:1], checkpoint={"keep": "last"}), tmp_path / "served")
    decide(served, 0, promoted=True, by="gate", why="the first")
    extend(served, TASKS[1])
    extend(served, TASKS[2])
    stages = {found.stage for found in checkpoints(served)}
    assert stages == {0, 1, 2}, "stages 1 and 2 are still to be decided on"
    decide(served, 2, promoted=True, by="hand", why="asked for")
    extend(served, TASKS[3])
    assert {found.stage for found in checkpoints(served)} == {2, 3}
    with pytest.raises(RunDirectoryError, match="stage 0 cannot be served: its checkpoints are gone"):
        decide(served, 0, promoted=True, by="hand", why="asked for")


def test_a_copy_of_before_the_extension_is_that_of_the_run(base: Path, tmp_path: Path) -> None:
    (tmp_path / "copies").mkdir()
    profile = small.cluster("in_process", storage_path=str(tmp_path / "copies"))
    config = experiment(base, "lamol", TASKS[:1])
    copied = run(config, tmp_path / "copied", profile)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as broken, pytest.raises(KeyboardInterrupt):
        broken.setattr(execute, "open_session", die)
        extend(copied, TASKS[1], profile=profile)
    execute.resume(copied, profile, SILENT)
    assert copied.summary()["stages"] == ["mini.rest", "mini.woz"]
    assert (tmp_path / "copies" / "copied" / "tests" / "mini.woz.parquet").is_file()


def test_examples_that_a_method_had_kept_are_read_again_if_they_are_gone(base: Path, tmp_path: Path) -> None:
    whole = run(experiment(base, "er", TASKS[:3]), tmp_path / "whole")
    extended = run(experiment(base, "er", TASKS[:2]), tmp_path / "extended")
    shutil.rmtree(extended.path / "stored")
    extend(extended, TASKS[2])
    assert same(extended, whole)
