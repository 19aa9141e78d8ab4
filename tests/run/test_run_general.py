"""The perplexity on general text over a whole run: what is recorded, when, and that nothing is learned from it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from ray_l4.cli.reports import rescore as rescore_command
from ray_l4.cluster.spawn import LocalSpawner
from ray_l4.config.experiment import ExperimentConfig, PeersConfig
from ray_l4.config.loading import dump_yaml
from ray_l4.config.stream import TaskConfig
from ray_l4.errors import ConfigError, DamagedError, DataError, PeerLostError
from ray_l4.learner.initial_model import initial_model
from ray_l4.learner.models import load_folder
from ray_l4.report.finished_run import FinishedRun
from ray_l4.report.markdown import run_report
from ray_l4.report.summary import summarise
from ray_l4.run import execute
from ray_l4.run.coordinator import Coordinator, new_context
from ray_l4.run.general_rescoring import general_experiment, measure_general
from ray_l4.run.going_back import go_back_if_damaged
from ray_l4.store.general import GENERAL, read_general, start_cell
from ray_l4.store.run_directory import Cell, RunDirectory
from ray_l4.store.sealed import write_record
from ray_l4.store.whole_stages import return_to
from ray_l4.workers.student import Student
from tests.run import run_fixtures as small
from tests.run.run_fixtures import Finished, cluster, complete_run

PROSE = "In spring the river rises, and the boats lie high between the houses. Nobody minds. " * 40
IN_PROCESS = cluster("in_process")
SILENT = Console(quiet=True)


@pytest.fixture(scope="module")
def prose(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "prose.txt"
    path.write_text(PROSE, encoding="utf-8")
    return path


def with_text(path: Path | None, method: str = "l4", **evaluation: Any) -> ExperimentConfig:
    """A run on general text; without, the same run otherwise."""
    text = {} if path is None else {"general": str(path), "general_tokens": 400}
    return small.quick(method, training={"epochs": 2, "batch_size": 8}, evaluation=text | evaluation)


@pytest.fixture(scope="module")
def followed(prose: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return complete_run(with_text(prose), IN_PROCESS, tmp_path_factory.mktemp("runs") / "followed")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return complete_run(with_text(None), IN_PROCESS, tmp_path_factory.mktemp("runs") / "plain")


def copied(run: RunDirectory, path: Path) -> RunDirectory:
    shutil.copytree(run.path, path)
    return RunDirectory.open(path)


def values(run: RunDirectory) -> dict[str, float]:
    return {cell.checkpoint: record["perplexity"] for cell, record in read_general(run).items()}


def go_on(run: RunDirectory, config: ExperimentConfig) -> Mapping[str, Any]:
    """Resume a run in this process."""
    setup = small.prepare(config)
    return Coordinator(new_context(setup, IN_PROCESS, run), LocalSpawner, setup.topology.size).run()


def test_every_student_is_measured_at_its_start_and_after_every_stage(followed: Finished) -> None:
    run, summary = followed
    assert set(values(run)) == {
        *(f"start.student-{student}" for student in (0, 1)),
        *(f"stage-{stage}.epoch-2.student-{student}" for stage in (0, 1) for student in (0, 1)),
    }
    assert summary["general"]["text"] == "prose.txt"
    assert summary["general"]["tokens"] == 400
    for student, course in summary["general"]["perplexity"].items():
        own = [f"start.student-{student}", *(f"stage-{stage}.epoch-2.student-{student}" for stage in (0, 1))]
        assert course == [values(run)[name] for name in own]
        assert summary["general_perplexity"][student] == course[-1]
    assert len(set(values(run).values())) == 5, "the students begin alike and learn differently"


def test_values_are_those_of_transformers_on_the_same_windows(followed: Finished) -> None:
    run, _ = followed
    config = run.experiment()
    setup = small.prepare(config)
    assert setup.general is not None
    assert setup.general.tokens == 400
    assert {len(window) for window in setup.general.windows} == {96, 400 - 4 * 96}, "as long as the run's sequences"
    models = {start_cell(0): initial_model(config, 0, setup.tokenizer)}
    for stage, student in ((0, 1), (1, 0)):
        models[Cell(stage, 2, student, GENERAL)] = load_folder(run.checkpoint(stage, 2, student))[0]
    for cell, model in models.items():
        model.eval()
        total = 0.0
        for window in setup.general.windows:
            ids = torch.from_numpy(window).long()[None]
            total += model(input_ids=ids, labels=ids).loss.item() * (len(window) - 1)
        expected = torch.tensor(total / setup.general.predicted).exp().item()
        assert values(run)[cell.checkpoint] == pytest.approx(expected, rel=1e-5)


def test_nothing_that_is_learned_or_scored_changes(followed: Finished, plain: Finished) -> None:
    small.assert_equal(followed[0], plain[0])
    added = {"general", "general_perplexity"}
    assert followed[1].keys() - plain[1].keys() == added
    for key in ("score_matrix", "final", "average_accuracy", "forgetting", "replay"):
        assert followed[1][key] == plain[1][key], "it is none of the tasks"
    assert not (plain[0].path / "general").exists()


def test_several_evaluators_and_every_epoch(prose: Path, followed: Finished, tmp_path: Path) -> None:
    profile = cluster("in_process", evaluators={"count": 3})
    run, _ = complete_run(with_text(prose, when="epoch"), profile, tmp_path / "run")
    found = values(run)
    assert len(found) == 2 + 2 * 2 * 2
    assert {name: found[name] for name in values(followed[0])} == values(followed[0])


def test_a_model_that_does_not_change_keeps_its_perplexity(prose: Path, tmp_path: Path) -> None:
    """So the values of the start and of checkpoints are the same figure."""
    config = with_text(prose).model_copy(update={"method": "finetune"})
    config = config.model_copy(update={"optim": config.optim.model_copy(update={"lr": 1e-30})})
    run, _ = complete_run(config, IN_PROCESS, tmp_path / "run")
    assert len(values(run)) == 3
    assert len(set(values(run).values())) == 1


def test_independent_models_are_averaged(prose: Path, tmp_path: Path) -> None:
    _, summary = complete_run(with_text(prose, "single-qa"), IN_PROCESS, tmp_path / "run")
    before, *after = summary["general"]["perplexity"]["0"]
    assert None not in (before, *after)
    assert summary["general_perplexity"]["0"] == pytest.approx(sum(after) / len(after))


def test_a_run_that_is_stopped_has_the_same_values(prose: Path, followed: Finished, tmp_path: Path) -> None:
    config = with_text(prose)
    setup, run = small.new_run(config, IN_PROCESS, tmp_path / "run")
    small.run_with_stops(setup, IN_PROCESS, run, 6)
    assert values(run) == values(followed[0])


def test_missing_and_damaged_records_are_taken_again_and_others_stay(
    prose: Path, followed: Finished, tmp_path: Path
) -> None:
    run = copied(followed[0], tmp_path / "run")
    whole = values(run)
    (run.path / "general" / "start.student-1.json").unlink()
    (run.path / "general" / "stage-0.epoch-2.student-0.json").unlink()
    (run.path / "general" / "stage-1.epoch-2.student-1.json").write_text("{")
    (run.path / "general" / "start.student-0.json").write_text("{")
    kept = run.path / "general" / "stage-0.epoch-2.student-1.json"
    before = kept.stat().st_mtime_ns
    with pytest.raises(DamagedError):
        read_general(run)
    summary = go_on(run, with_text(prose))
    assert values(run) == whole
    assert kept.stat().st_mtime_ns == before
    assert summary["general"] == followed[1]["general"]


def test_another_text_is_measured_anew(followed: Finished, tmp_path: Path) -> None:
    run = copied(followed[0], tmp_path / "run")
    other = tmp_path / "other.txt"
    other.write_text("Quite another text, with other words in it. " * 60)
    summary = go_on(run, with_text(other))
    assert summary["general"]["text"] == "other.txt"
    assert values(run).keys() == values(followed[0]).keys()
    assert not set(values(run).values()) & set(values(followed[0]).values())


def test_records_of_another_text_do_not_count(followed: Finished, tmp_path: Path) -> None:
    run = copied(followed[0], tmp_path / "run")
    cell = Cell(0, 2, 1, GENERAL)
    path = run.path / "general" / f"{cell.checkpoint}.json"
    write_record(path, {**read_general(run)[cell], "digest": "another"})
    course = summarise(run)["general"]["perplexity"]["1"]
    assert [value is None for value in course] == [False, True, False]


def test_going_back_removes_what_was_learned_later(followed: Finished, tmp_path: Path) -> None:
    run = copied(followed[0], tmp_path / "run")
    return_to(run, 1, lambda: None)
    assert set(values(run)) == {name for name in values(followed[0]) if not name.startswith("stage-1")}


def test_a_damaged_checkpoint_without_its_value_is_learned_again(
    prose: Path, followed: Finished, tmp_path: Path
) -> None:
    run = copied(followed[0], tmp_path / "run")
    (run.path / "general" / "stage-0.epoch-2.student-0.json").unlink()
    weights = run.checkpoint(0, 2, 0) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    setup = small.prepare(with_text(prose))
    go_back_if_damaged(run, setup, lambda line: None)
    assert run.state().stages_done == 0
    assert set(values(run)) == {"start.student-0", "start.student-1"}


def test_adapters(prose: Path, followed: Finished, tmp_path: Path) -> None:
    """The start of a student with adapters is that of the pretrained model with rows for the added tokens."""
    base = followed[0].checkpoint(1, 2, 0)
    config = small.quick(
        "finetune",
        model={"from_scratch": None, "name": str(base), "lora": {"rank": 2}},
        training={"epochs": 1, "batch_size": 8},
        evaluation={"general": str(prose), "general_tokens": 400},
    )
    run, summary = complete_run(config, IN_PROCESS, tmp_path / "run")
    before, *after = summary["general"]["perplexity"]["0"]
    assert before == pytest.approx(values(followed[0])["stage-1.epoch-2.student-0"], rel=1e-6)
    assert before not in after
    assert rescored(run, prose, tmp_path) == pytest.approx(values(run), rel=1e-5)


# --- a finished run that had no general text


def rescored(run: RunDirectory, prose: Path, tmp_path: Path) -> dict[str, float]:
    """The values of a copy of the run that has none, measured afterwards."""
    bare = copied(run, tmp_path / "bare")
    shutil.rmtree(bare.path / "general", ignore_errors=True)
    rescore_command([bare.path], set_=[f"evaluation.general={prose}", "evaluation.general_tokens=400"], device="cpu")
    return values(bare)


def test_a_finished_run_gets_the_values_that_it_would_have_had(
    prose: Path, followed: Finished, plain: Finished, tmp_path: Path
) -> None:
    assert rescored(plain[0], prose, tmp_path) == pytest.approx(values(followed[0]), rel=1e-6)
    run = RunDirectory.open(tmp_path / "bare")
    assert run.experiment().evaluation == followed[0].experiment().evaluation, "config.yaml has the text"
    summary, expected = run.summary(), json.loads(json.dumps(followed[1]))
    for student in ("0", "1"):
        assert summary["general"]["perplexity"][student] == pytest.approx(
            expected["general"]["perplexity"][student], rel=1e-6
        )
    assert summary["score_matrix"] == expected["score_matrix"]
    assert go_on(run, run.experiment())["general"] == summary["general"], "it can be resumed, and keeps them"
    assert "## General text" in run_report(FinishedRun.open(run.path))


def test_what_is_known_is_not_measured_again_and_a_dry_run_writes_nothing(
    prose: Path, followed: Finished, tmp_path: Path
) -> None:
    run = copied(followed[0], tmp_path / "run")
    path = run.path / "general" / "start.student-1.json"
    path.unlink()
    config = general_experiment(run, ())
    found = list(measure_general(run, config, "cpu", write=False))
    assert found == [(start_cell(1), pytest.approx(values(followed[0])["start.student-1"], rel=1e-6))]
    assert not path.exists()
    assert len(list(measure_general(run, config, "cpu", write=True))) == 1
    assert not list(measure_general(run, config, "cpu", write=True))


def test_a_checkpoint_that_is_gone_is_left_out(prose: Path, plain: Finished, tmp_path: Path) -> None:
    run = copied(plain[0], tmp_path / "run")
    shutil.rmtree(run.checkpoint(0, 2, 0))
    rescore_command([run.path], set_=[f"evaluation.general={prose}"], device="cpu")
    course = run.summary()["general"]["perplexity"]["0"]
    assert [value is None for value in course] == [False, True, False]


def test_settings_that_cannot_be_given_afterwards_are_refused(prose: Path, plain: Finished) -> None:
    run = plain[0]
    before = dump_yaml(run.experiment())
    with pytest.raises(ConfigError, match=r"--set optim.lr=1: .*expected evaluation.general"):
        general_experiment(run, [f"evaluation.general={prose}", "optim.lr=1"])
    with pytest.raises(ConfigError, match="no general text"):
        general_experiment(run, ())
    with pytest.raises(DataError, match="no file"):
        config = general_experiment(run, ["evaluation.general=nowhere.txt"])
        list(measure_general(run, config, "cpu", write=True))
    assert dump_yaml(run.experiment()) == before
    assert not (run.path / "general").exists()


# --- what else happens to runs


def test_a_run_that_is_extended_goes_on_with_its_text(prose: Path, tmp_path: Path) -> None:
    """The values of what was learned stay; the new stage gets its own, also when the file is gone."""
    own = tmp_path / "own.txt"
    own.write_text(prose.read_text())
    config = with_text(own, "lamol", limit=4)
    execute.run(config, IN_PROCESS, tmp_path / "run", "ray-l4 run", SILENT)
    run = RunDirectory.open(tmp_path / "run")
    before = values(run)
    more = [TaskConfig.model_validate({"name": "mini.sql", "train": 12, "test": 4})]
    own.unlink()
    execute.extend(run, more, IN_PROCESS, "ray-l4 extend", SILENT)
    after = values(run)
    assert {name: after[name] for name in before} == before
    assert after.keys() - before.keys() == {"stage-2.epoch-2.student-0"}
    assert run.summary()["general_perplexity"]["0"] == after["stage-2.epoch-2.student-0"]
    (run.path / "general" / "windows.parquet").unlink()
    with pytest.raises(DataError, match=r"evaluation.general: no file .*own.txt"):
        execute.extend(run, [more[0].model_copy(update={"train": 8})], IN_PROCESS, "ray-l4 extend", SILENT)


def test_without_a_student_the_others_are_measured_to_the_end(
    prose: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Student 2 is lost in the first stage, and with it values that nobody waits for."""
    original, original_rejoin, dead = Student.forward, Student.rejoin, [False]

    def forward(self: Student, fence: int, step: int, readers: Any) -> Any:
        dead[0] = dead[0] or (self.peer == 2 and step == 4)
        if self.peer == 2 and dead[0]:
            raise PeerLostError("student 2: its process died")
        return original(self, fence, step, readers)

    def rejoin(self: Student, fence: int) -> int:
        if self.peer == 2:
            raise PeerLostError("student 2: its process died")
        return original_rejoin(self, fence)

    monkeypatch.setattr(Student, "forward", forward)
    monkeypatch.setattr(Student, "rejoin", rejoin)
    config = with_text(prose).model_copy(update={"peers": PeersConfig(count=3, on_peer_loss="continue")})
    run, summary = complete_run(config, IN_PROCESS, tmp_path / "run")
    assert list(summary["lost_students"]) == ["2"]
    courses = summary["general"]["perplexity"]
    assert [value is None for value in courses["2"]] == [False, True, True]
    assert None not in courses["0"] + courses["1"]
    assert summary["general_perplexity"]["2"] is None
    assert "## General text" in run_report(FinishedRun.open(run.path))


def test_task_teachers_are_not_measured(prose: Path, tmp_path: Path) -> None:
    run, summary = complete_run(with_text(prose, "l2kd-word"), IN_PROCESS, tmp_path / "run")
    assert None not in summary["general"]["perplexity"]["0"]
    assert not (run.teachers() / "general").exists()
    assert "general" not in RunDirectory(run.teachers()).summary()


@pytest.mark.usefixtures("ray_cluster")
def test_the_values_are_the_same_on_ray_with_several_evaluators(
    prose: Path, followed: Finished, tmp_path: Path
) -> None:
    profile = cluster("object_store", evaluators={"count": 2})
    run, summary = complete_run(with_text(prose), profile, tmp_path / "run")
    assert values(run) == values(followed[0])
    assert summary["general"] == followed[1]["general"]
