"""Runs whose models are shown the most similar training examples, from data to scores, and a model that only looks."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from transformers import GPT2Config

from ray_l4.config.experiment import ExperimentConfig
from ray_l4.errors import ConfigError
from ray_l4.report.finished_run import FinishedRun
from ray_l4.report.html.page import render
from ray_l4.report.markdown import run_report
from ray_l4.run.coordinator import new_context
from ray_l4.run.execute import resume
from ray_l4.run.session import start
from ray_l4.setup.inspected import Inspected, Settings, inspected
from ray_l4.setup.loaded import AnswerRoom, answer_one, load_inspected, one_question, score_tasks
from ray_l4.setup.setup import prepare
from ray_l4.store.run_directory import RunDirectory
from tests.learner import adapter_fixtures as adapted
from tests.run import run_fixtures as small
from tests.run import test_run_extension as extending

IN_PROCESS = small.cluster("in_process")
TASKS = extending.TASKS[:3]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretrained model with room for some demonstrations."""
    folder = tmp_path_factory.mktemp("base") / "base"
    adapted.save_base(folder, GPT2Config(n_embd=32, n_layer=1, n_head=2, n_positions=320))
    return folder


def experiment(base: Path, method: str, stream: list[dict[str, Any]], count: int = 1, **more: Any) -> ExperimentConfig:
    model = {"name": str(base), "spare_task_tokens": 5 - len(stream), "max_length": 320}
    return extending.experiment(base, method, stream, model=model, memory={"retrieve": count}, **more)


@pytest.fixture(scope="module")
def learned(base: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A run of ``finetune`` on two tasks."""
    return extending.run(experiment(base, "finetune", TASKS[:2], 2), tmp_path_factory.mktemp("learned") / "run")


def retrieved(run: RunDirectory, cell: str) -> list[list[str]]:
    names: list[list[str]] = pq.read_table(run.path / "predictions" / f"{cell}.parquet")["retrieved"].to_pylist()
    return names


def test_a_reader_sees_what_was_retrieved_for_each_answer(learned: RunDirectory) -> None:
    stages = [retrieved(learned, f"stage-{stage}.epoch-1.student-0.mini.woz") for stage in (0, 1)]
    items = [{name.partition("/")[0] for names in own for name in names} for own in stages]
    assert items == [{"mini.rest"}, {"mini.woz"}], "before its task is learned, examples of another one"
    counts = {len(names) for own in stages for names in own}
    assert 2 in counts and counts <= {0, 1, 2}, "as many as are asked for, or as have room"
    assert sorted(path.name for path in (learned.path / "memory").iterdir()) == [
        "mini.rest.parquet",
        "mini.woz.parquet",
    ]
    assert pq.read_table(learned.memory_examples("mini.rest")).num_rows == 24


def test_with_no_examples_to_show_a_run_is_as_it_was(base: Path, tmp_path: Path) -> None:
    """And its directory has nothing more in it."""
    none = extending.run(experiment(base, "lamol", TASKS[:2], 0), tmp_path / "none")
    plain = extending.run(
        extending.experiment(base, "lamol", TASKS[:2], model=experiment(base, "lamol", TASKS[:2]).model),
        tmp_path / "plain",
    )
    small.assert_equal(none, plain)
    assert not (none.path / "memory").exists()
    columns = pq.read_schema(next((none.path / "predictions").glob("*.parquet"))).names
    assert "retrieved" not in columns


@pytest.mark.parametrize("method", ["finetune", "lamol", "er", "retrieve"])
def test_extending_by_a_task_ends_like_the_run_on_all_tasks(base: Path, tmp_path: Path, method: str) -> None:
    """The data of what was learned need not be there: the run has kept its texts."""
    own = [extending.own_task(tmp_path / name, name) for name in ("first", "second", "third")]
    whole = extending.run(experiment(base, method, own), tmp_path / "whole")
    extended = extending.run(experiment(base, method, own[:2]), tmp_path / "extended")
    for name in ("first", "second"):
        shutil.rmtree(tmp_path / name)
    extending.extend(extended, own[2])
    assert extending.same(extended, whole)
    for stage in range(3):
        cell = f"stage-{stage}.epoch-1.student-0.first"
        assert retrieved(extended, cell) == retrieved(whole, cell)


@pytest.mark.parametrize("method", ["lamol", "retrieve"])
def test_a_run_that_was_stopped_ends_like_one_that_was_not(base: Path, tmp_path: Path, method: str) -> None:
    config = experiment(base, method, TASKS)
    whole, _ = small.complete_run(config, IN_PROCESS, tmp_path / "whole")
    line = "remembering 16 examples of mini.woz" if method == "retrieve" else "learning mini.woz"
    setup, run = small.stopped_run(config, tmp_path / "stopped", line)
    assert run.state().stages_done < 3 or not run.scores().keys() >= whole.scores().keys()
    small.finish(start(setup, IN_PROCESS, run))
    small.assert_equal(run, whole)


def test_a_stopped_run_is_resumed_without_the_data_of_finished_stages(base: Path, tmp_path: Path) -> None:
    own = [extending.own_task(tmp_path / name, name) for name in ("first", "second", "third")]
    config = experiment(base, "finetune", own)
    whole = extending.run(config, tmp_path / "whole")
    part = extending.run(experiment(base, "finetune", own[:2]), tmp_path / "part")
    extending.extend(part, own[2])
    shutil.rmtree(part.checkpoint(2, 1, 0))
    shutil.rmtree(tmp_path / "first")
    (part.path / "summary.json").unlink()
    resume(part, IN_PROCESS, extending.SILENT)
    small.assert_equal(part, whole)


def test_on_ray_and_with_two_evaluators_it_ends_like_in_one_process(
    base: Path, tmp_path: Path, ray_cluster: None
) -> None:
    config = experiment(base, "lamol", TASKS[:2])
    whole = extending.run(config, tmp_path / "whole")
    profile = small.cluster("object_store", ray={"address": "auto"}, evaluators={"count": 2, "cpus": 0})
    on_ray = extending.run(config, tmp_path / "ray", profile)
    assert extending.same(on_ray, whole)
    assert retrieved(on_ray, "stage-1.epoch-1.student-0.mini.woz") == retrieved(
        whole, "stage-1.epoch-1.student-0.mini.woz"
    )


# --- a model that only looks


def test_a_frozen_model_makes_no_step_and_stays_what_it_was(base: Path, tmp_path: Path) -> None:
    config = experiment(base, "retrieve", TASKS[:2], evaluation={"validation": 0.25})
    setup, run = small.new_run(config, IN_PROCESS, tmp_path / "run")
    context = new_context(setup, IN_PROCESS, run)
    assert context.progress.snapshot().steps_done == 0
    summary = small.finish(start(setup, IN_PROCESS, run))
    assert run.step_figures() == [] and not (run.path / "steps").exists() and not (run.path / "states").exists()
    assert len(small.weights(run)) == 2 and len(set(small.weights(run).values())) == 1
    assert [len(row) for row in summary["score_matrix"]["0"]] == [2, 2]
    finished = FinishedRun.open(run.path)
    assert "a frozen model" in run_report(finished)
    assert "mini.woz" in render([finished])


def test_what_it_is_shown_changes_its_answers(base: Path, tmp_path: Path) -> None:
    runs = [
        small.complete_run(experiment(base, "retrieve", TASKS[:2], count), IN_PROCESS, tmp_path / str(count))[0]
        for count in (0, 2)
    ]
    first, second = (
        pq.read_table(run.path / "predictions" / "stage-1.epoch-1.student-0.mini.rest.parquet") for run in runs
    )
    assert set(small.weights(runs[0]).values()) == set(small.weights(runs[1]).values())
    assert first["prediction"].to_pylist() != second["prediction"].to_pylist()


# --- after the run


def of_checkpoint(run: RunDirectory, stage: int, *overrides: str) -> Inspected:
    (found,) = inspected(str(run.checkpoint(stage, 1, 0)), Settings(overrides=overrides))
    return found


@pytest.mark.parametrize("stage", [0, 1])
def test_a_checkpoint_is_evaluated_and_asked_as_its_run_scored_it(learned: RunDirectory, stage: int) -> None:
    found = of_checkpoint(learned, stage)
    loaded = load_inspected(found, "cpu")
    setup = prepare(learned.experiment())
    for task in ("mini.rest", "mini.woz"):
        path = learned.path / "predictions" / f"stage-{stage}.epoch-1.student-0.{task}.parquet"
        recorded = pq.read_table(path)
        config = found.experiment.of_tasks[task]
        tests = pq.read_table(learned.test_examples(task))
        (score,) = score_tasks(found, loaded, [config], {task: tests})
        assert score.scored.predictions == recorded["prediction"].to_pylist()
        assert [list(names) for names in score.tests.shown] == recorded["retrieved"].to_pylist()
        own = setup.tests_of(stage)[task]
        room = AnswerRoom(own.max_new_tokens, own.reserved)
        row = tests.to_pylist()[1]
        one = one_question(found, loaded, task, row["context"], row["question"], room)
        assert one.tests.prompts["ids"][0] == own.prompts["ids"][1] and not one.cut
        said = answer_one(found, loaded, task, row["context"], row["question"], room)
        assert said == recorded["prediction"][1].as_py()


def test_a_model_of_no_run_has_nothing_to_show(learned: RunDirectory, tmp_path: Path) -> None:
    copied = tmp_path / "copied"
    shutil.copytree(learned.checkpoint(1, 1, 0), copied)
    (found,) = inspected(str(copied), Settings(experiment=learned.path / "config.yaml"))
    with pytest.raises(ConfigError, match=r"memory\.retrieve: 2, but .*copied belongs to no run"):
        _ = found.memory
    (found,) = inspected(
        str(copied), Settings(experiment=learned.path / "config.yaml", overrides=["memory.retrieve=0"])
    )
    assert found.memory is None


def test_a_teacher_is_shown_what_its_student_is(base: Path, tmp_path: Path) -> None:
    config = experiment(base, "l2kd-word", TASKS[:2])
    whole = extending.run(config, tmp_path / "whole")
    extended = extending.run(experiment(base, "l2kd-word", TASKS[:1]), tmp_path / "extended")
    extending.extend(extended, TASKS[1])
    assert extending.same(extended, whole)
    teachers = RunDirectory.open(whole.teachers())
    cell = "stage-1.epoch-1.student-0.mini.woz"
    assert retrieved(teachers, cell) == retrieved(whole, cell)
