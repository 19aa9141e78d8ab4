"""One student of the peers of a finished run: whole runs, interruptions, and what it needs of the peers."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from safetensors.numpy import load_file, save_file

from ray_l4.cluster.spawn import LocalSpawner
from ray_l4.config.cluster import ClusterConfig
from ray_l4.config.experiment import ExperimentConfig
from ray_l4.config.loading import dump_yaml
from ray_l4.config.stream import StageSettings
from ray_l4.errors import ConfigError, RayL4Error, RunDirectoryError
from ray_l4.methods import fusing, resolved
from ray_l4.report.finished_run import FinishedRun
from ray_l4.report.fusion import fusion_table
from ray_l4.report.markdown import run_report
from ray_l4.run import execute
from ray_l4.run.context import StoppedError
from ray_l4.run.coordinator import Coordinator, new_context
from ray_l4.run.peer_teachers import PEERS_KEY
from ray_l4.run.preparation import keep_examples, manifest_of, prepare_again, prepare_run
from ray_l4.setup.peer_teachers import fusable
from ray_l4.store.atomic import write_folder
from ray_l4.store.checksums import write_sums
from ray_l4.store.run_directory import RunDirectory
from tests.run import run_fixtures as small

LOCAL = small.cluster("in_process")
SILENT = Console(quiet=True)
Peers = Callable[[int], RunDirectory]


def peers_run(folder: Path, count: int, **changes: Any) -> RunDirectory:
    config = small.quick("l4", **{"peers": {"count": count, "init": "own"}} | changes)
    execute.run(config, LOCAL, folder, "ray-l4 run", SILENT)
    return RunDirectory.open(folder)


@pytest.fixture(scope="module")
def peers(tmp_path_factory: pytest.TempPathFactory) -> Peers:
    """Function that returns the finished run of so many peers."""
    made: dict[int, RunDirectory] = {}

    def run(count: int) -> RunDirectory:
        if count not in made:
            made[count] = peers_run(tmp_path_factory.mktemp(f"peers-{count}") / "run", count)
        return made[count]

    return run


@pytest.fixture
def pair(peers: Peers, tmp_path: Path) -> RunDirectory:
    """A copy of the run of two peers, which a test may change."""
    return RunDirectory.open(Path(shutil.copytree(peers(2).path, tmp_path / "pair")))


def fusion(run: RunDirectory) -> ExperimentConfig:
    return resolved(fusing(run.experiment(), run.path, fusable(run).students))


def fused(run: RunDirectory, folder: Path, profile: ClusterConfig = LOCAL) -> RunDirectory:
    execute.run(fusion(run), profile, folder, "ray-l4 fuse", SILENT)
    return RunDirectory.open(folder)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_peers_become_one_model_that_is_scored_on_all_tasks(peers: Peers, tmp_path: Path, count: int) -> None:
    run = peers(count)
    result = fused(run, tmp_path / "fused")
    summary, of_peers = result.summary(), run.summary()
    assert (summary["peers"], summary["stages"], summary["stream"]) == (1, ["all"], of_peers["stream"])
    assert summary["learned"] == [of_peers["stream"]]
    assert [None not in row for row in summary["score_matrix"]["0"]] == [True]
    assert list(small.weights(result)) == ["checkpoints/stage-0/epoch-3/student-0/model.safetensors"]
    rows = result.step_figures()
    valid = sum(run.replay(1).is_file() and row["valid"] for row in small.replayed(run))
    assert valid > 0 and sum(row["samples"] for row in rows) == 3 * (32 + valid), (
        "current ones, and valid replayed ones"
    )
    assert pq.read_table(result.replay(0)).to_pylist() == small.replayed(run)
    assert summary["replay"]["0"]["valid"] == valid
    assert all(row["kd_qa"] > 0 for row in rows)
    printed = fusion_table(FinishedRun.open(result.path)).splitlines()
    assert [line.split("|")[1].strip() for line in printed[2:]] == [*(f"peer {n}" for n in range(count)), "fused"]
    averages = [f"{of_peers['average_accuracy'][str(n)]:.1f}" for n in range(count)]
    assert [line.split("|")[-2].strip() for line in printed[2:-1]] == averages
    assert "## Replay" in run_report(FinishedRun.open(result.path))


def test_it_begins_with_the_first_peer_and_comes_close_to_the_mean(peers: Peers, tmp_path: Path) -> None:
    """With a rate that changes nothing it is that peer, and its divergence from all is not 0."""
    run = peers(2)
    config = fusion(run).model_copy(update={"optim": run.experiment().optim.model_copy(update={"lr": 1e-30})})
    execute.run(config, LOCAL, tmp_path / "fused", "ray-l4 fuse", SILENT)
    result = RunDirectory.open(tmp_path / "fused")
    (mine,), theirs = small.weights(result).values(), run.checkpoint(1, 3, 0) / "model.safetensors"
    assert mine == theirs.read_bytes()
    assert small.scores(result) == {
        name.replace("stage-1", "stage-0"): values
        for name, values in small.scores(run).items()
        if name.startswith("stage-1") and "student-0" in name
    }
    heavy = fusion(run)
    heavy = heavy.model_copy(update={"distillation": heavy.distillation.model_copy(update={"weight": 100.0})})
    execute.run(heavy, LOCAL, tmp_path / "heavy", "ray-l4 fuse", SILENT)
    before, after = (_divergence(each) for each in (result, RunDirectory.open(tmp_path / "heavy")))
    assert after < 0.8 * before, "it comes closer to the mean of the peers"


def _divergence(run: RunDirectory) -> float:
    return float(np.mean([row["kd_qa"] for row in run.step_figures()[-8:]]))


def test_what_is_interrupted_ends_with_the_same_weights(peers: Peers, tmp_path: Path) -> None:
    run = peers(3)
    whole = fused(run, tmp_path / "whole")
    ready = prepare_run(fusion(run), LOCAL, None)
    setup, manifest = ready.setup, manifest_of("ray-l4 fuse", ready.setup)
    parts = RunDirectory.create(tmp_path / "parts", setup.experiment, LOCAL, manifest)
    keep_examples(parts, ready)
    write_folder(parts.path / "tokenizer", setup.tokenizer.save)
    for stops in range(20):
        again = prepare_again(parts, LOCAL, None, lambda line: None).setup
        context = new_context(again, LOCAL, parts)
        stopping = replace(context, progress=small.StopAfter(context, 7))
        try:
            Coordinator(stopping, LocalSpawner, again.topology.size).run()
        except StoppedError:
            continue
        assert stops >= 2
        break
    small.assert_equal(parts, whole)


@pytest.mark.ray
def test_on_ray_it_is_the_same(peers: Peers, tmp_path: Path, ray_cluster: None) -> None:
    run = peers(2)
    profile = small.cluster("object_store", ray=small.SHARED.ray.model_dump())
    small.assert_equal(fused(run, tmp_path / "ray", profile), fused(run, tmp_path / "local"))


def test_peers_of_different_sizes_make_a_student_of_the_first_one_s(tmp_path: Path) -> None:
    each = [{}, {"model": {"from_scratch": {"width": 16}}}, {"lr": 1e-3}]
    run = peers_run(tmp_path / "peers", 3, peers={"count": 3, "each": each})
    config = fusion(run)
    assert [own.model is None for own in config.peers.each] == [True, True, False, True]
    result = fused(run, tmp_path / "fused")
    first, second = (load_file(run.checkpoint(1, 3, n) / "model.safetensors") for n in (0, 1))
    (folder,) = (result.path / "checkpoints").rglob("model.safetensors")
    shapes = {name: tensor.shape for name, tensor in load_file(folder).items()}
    assert shapes == {name: tensor.shape for name, tensor in first.items()}
    assert shapes != {name: tensor.shape for name, tensor in second.items()}


def test_peers_that_retrieve_make_a_student_that_is_shown_examples_of_all_tasks(tmp_path: Path) -> None:
    run = peers_run(tmp_path / "peers", 2, memory={"retrieve": 1}, evaluation={"max_new_tokens": 4, "reserve": 4})
    result = fused(run, tmp_path / "fused")
    tasks, answers = run.experiment().tasks, result.path / "predictions"
    shown = {task: pq.read_table(next(answers.glob(f"*.{task}.parquet")))["retrieved"].to_pylist() for task in tasks}
    assert all(any(rows) for rows in shown.values())
    found = {name.partition("/")[0] for rows in shown.values() for row in rows for name in row}
    assert found == set(tasks), "of the earlier task too"
    assert sorted(path.stem for path in (result.path / "memory").iterdir()) == sorted(run.experiment().items)


def test_peers_with_adapters_of_their_own_for_every_task_are_refused(pair: RunDirectory) -> None:
    config = pair.experiment()
    (pair.path / "config.yaml").write_text(dump_yaml(config.model_copy(update={"method": "olora"})))
    with pytest.raises(ConfigError, match="each task of olora has adapters of its own"):
        fusable(pair)


def test_the_settings_are_those_of_the_last_stage_but_for_the_distillation(tmp_path: Path) -> None:
    config = small.quick("l4-released", peers={"count": 2})
    own = StageSettings.model_validate({"training": {"epochs": 7}, "distillation": {"weight": 0.5}})
    last = config.stream[1].model_copy(update={"settings": own})
    tree = config.model_dump(mode="json", exclude_unset=True) | {
        "stream": [config.stream[0].model_dump(mode="json"), last.model_dump(mode="json")]
    }
    parent = resolved(ExperimentConfig.model_validate(tree))
    found = resolved(fusing(parent, tmp_path, [0, 1]))
    assert found.epochs_of(0) == 7
    assert found.distillation.model_dump(include={"weight", "temperature", "examples", "schedule"}) == {
        "weight": 1.0,
        "temperature": 2.0,
        "examples": "all",
        "schedule": "simultaneous",
    }
    assert resolved(found) == found


def test_a_peer_that_was_lost_is_left_out(pair: RunDirectory, peers: Peers, tmp_path: Path) -> None:
    run = RunDirectory.open(Path(shutil.copytree(peers(3).path, tmp_path / "three")))
    run.save_state(run.state().model_copy(update={"lost_students": {0: "killed"}}))
    shutil.rmtree(run.checkpoint(1, 3, 0))
    found = fusable(run)
    assert found.students == [1, 2] and found.notes == ["student 0 was lost, and is left out: killed"]
    result = fused(run, tmp_path / "fused")
    assert [line.split("|")[1].strip() for line in fusion_table(FinishedRun.open(result.path)).splitlines()[2:]] == [
        "peer 1",
        "peer 2",
        "fused",
    ]


def test_without_a_replay_file_current_examples_are_learned_alone(pair: RunDirectory, tmp_path: Path) -> None:
    pair.replay(1).unlink()
    (note,) = fusable(pair).notes
    assert "nothing was replayed in the last stage" in note
    result = fused(pair, tmp_path / "fused")
    assert sum(row["samples"] for row in result.step_figures()) == 3 * 32
    assert result.summary()["replay"] == {}


def test_peers_that_were_extended_later_still_teach_as_they_were(pair: RunDirectory, tmp_path: Path) -> None:
    """The fused run refers to the stage that was the last one then."""
    result = fused(pair, tmp_path / "fused")
    item = small.experiment(stream=[{"name": "mini.sql", "train": 8, "test": 4}]).stream
    execute.extend(pair, item, LOCAL, "ray-l4 extend", SILENT)
    (result.path / "summary.json").unlink()
    shutil.rmtree(result.path / "scores")
    before = small.weights(result)
    execute.resume(result, LOCAL, SILENT)
    assert small.weights(result) == before
    assert "peer 1" in fusion_table(FinishedRun.open(result.path))
    execute.run(fusion(pair), LOCAL, tmp_path / "again", "ray-l4 fuse", SILENT)
    assert RunDirectory.open(tmp_path / "again").summary()["stream"] == ["mini.rest", "mini.woz", "mini.sql"]


# --- what is refused


def begun_fusion(run: RunDirectory, folder: Path) -> RunDirectory:
    """A fused run that has begun and learned nothing yet."""
    ready = prepare_run(fusion(run), LOCAL, None)
    manifest = manifest_of("ray-l4 fuse", ready.setup)
    assert manifest[PEERS_KEY].keys() == {"0", "1", "replay"}  # type: ignore[attr-defined]
    return RunDirectory.create(folder, ready.setup.experiment, LOCAL, manifest)


def other_weights(run: RunDirectory) -> None:
    folder = run.checkpoint(1, 3, 1)
    tensors = load_file(folder / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, folder / "model.safetensors")
    write_sums(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (other_weights, r"pair: the weights of student 1 changed since they were first used.*ray-l4 fuse"),
        (lambda run: run.replay(1).unlink(), r"pair: the replay of its last stage changed since"),
        (lambda run: shutil.rmtree(run.checkpoint(1, 3, 0)), r"student-0: is missing, so student 0 of .* cannot teach"),
        (lambda run: shutil.rmtree(run.path), r"pair: not a run directory \(no such folder\)"),
    ],
)
def test_a_resume_needs_the_peers_that_it_began_with(
    pair: RunDirectory, tmp_path: Path, change: Callable[[RunDirectory], None], message: str
) -> None:
    run = begun_fusion(pair, tmp_path / "fused")
    prepare_again(run, LOCAL, None, lambda line: None)
    change(pair)
    with pytest.raises(RunDirectoryError, match=message):
        prepare_again(run, LOCAL, None, lambda line: None)


def test_weights_that_are_damaged_are_not_taught(pair: RunDirectory, tmp_path: Path) -> None:
    config = fusion(pair)
    path = pair.checkpoint(1, 3, 1) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(RunDirectoryError, match=r"model\.safetensors .*checkpoint of a teacher, in another run"):
        execute.run(config, LOCAL, tmp_path / "fused", "ray-l4 fuse", SILENT)


def test_a_fused_run_cannot_be_extended(peers: Peers, tmp_path: Path) -> None:
    result = fused(peers(2), tmp_path / "fused")
    items = small.experiment(stream=["mini.sql"]).stream
    with pytest.raises(ConfigError, match="fuse learns all tasks at once, so a run of it cannot be extended"):
        execute.extend(result, items, LOCAL, "ray-l4 extend", SILENT)


def test_other_data_is_refused(pair: RunDirectory, tmp_path: Path) -> None:
    config = fusion(pair)
    other = config.model_copy(update={"data": config.data.model_copy(update={"seed": 9})})
    with pytest.raises(RayL4Error, match=r"the data of mini\.woz or the tokeniser has changed since the run began"):
        execute.run(other, LOCAL, tmp_path / "fused", "ray-l4 fuse", SILENT)
    assert not (tmp_path / "fused").exists()
