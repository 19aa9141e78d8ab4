"""Students that teach each other and stay equal: found by their weights, named once, with the remedy."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from safetensors.torch import load_file

from ray_l4.cluster.handles import StudentHandle
from ray_l4.cluster.membership import Membership
from ray_l4.cluster.rpc import LocalRpc
from ray_l4.config.experiment import ExperimentConfig
from ray_l4.methods import Topology, complete, from_edges, isolated
from ray_l4.run.equal_peers import EqualPeers, staying_equal
from ray_l4.run.session import start
from ray_l4.setup.setup import prepare
from ray_l4.store.run_directory import RunDirectory
from ray_l4.workers.calls import WeightsDigest
from tests.learner import adapter_fixtures as adapted
from tests.learner import learner_fixtures as small
from tests.run.run_fixtures import bare_context, cluster, finish, new_run

IN_PROCESS = cluster("in_process")


@pytest.mark.parametrize(
    ("topology", "states", "expected"),
    [
        (complete(2), "aa", [0, 1]),
        (complete(2), "ab", []),
        (isolated(2), "aa", []),
        (complete(3), "aaa", [0, 1, 2]),
        (complete(3), "aab", [0, 1]),  # both learn from the third, and stay equal to each other
        (from_edges(3, [[0, 1], [1, 2], [2, 0]]), "aab", []),  # a ring: 0 learns from 2, and 1 from 0
        (from_edges(3, [[0, 1], [1, 2]]), "aaa", [0, 1, 2]),  # nobody teaches 0, and the others what they know
        (from_edges(3, [[0, 1], [1, 2]]), "aab", [0, 1]),
        (from_edges(2, [[0, 1]]), "ab", []),
    ],
)
def test_who_stays_equal_follows_from_weights_and_teachers(
    topology: Topology, states: str, expected: list[int]
) -> None:
    assert staying_equal(topology, dict(enumerate(states))) == expected


def test_a_frozen_teacher_is_unlike_all_students() -> None:
    topology = Topology(3, frozenset({(0, 1), (1, 0), (2, 0)}), frozenset({2}))
    assert staying_equal(topology, {0: "a", 1: "a"}) == [], "only student 0 learns from the teacher"


class Rank:
    """A rank of a student, with a digest of its part of the weights."""

    def __init__(self, part: str) -> None:
        self.part = part

    def digest(self) -> WeightsDigest:
        return WeightsDigest(self.part, dropout=False)


@pytest.mark.parametrize(("parts", "warned"), [((("a", "b"), ("a", "b")), True), ((("a", "b"), ("a", "c")), False)])
def test_all_ranks_of_a_student_count(
    folder: Path, tmp_path: Path, parts: tuple[tuple[str, str], ...], warned: bool
) -> None:
    """Fully sharded, the rows of new tokens, the last ones, are the last rank's."""
    rpc = LocalRpc()
    students = [StudentHandle(slot, rpc, [Rank(part) for part in own]) for slot, own in enumerate(parts)]
    context = bare_context(prepare(experiment(folder)), tmp_path / "run")
    table = object()
    EqualPeers(context, rpc, cast(Membership, SimpleNamespace(students=students))).look(
        complete(2), {0: table, 1: table}
    )
    assert bool(context.progress.snapshot().events) == warned


def test_students_with_examples_of_their_own_differ(folder: Path, tmp_path: Path) -> None:
    rpc = LocalRpc()
    students = [StudentHandle(slot, rpc, [Rank("a")]) for slot in range(2)]
    context = bare_context(prepare(experiment(folder)), tmp_path / "run")
    tables = {0: object(), 1: object()}
    EqualPeers(context, rpc, cast(Membership, SimpleNamespace(students=students))).look(complete(2), tables)
    assert not context.progress.snapshot().events


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama without dropout, with more rows than tokens as Qwen and Gemma have, and two tasks."""
    folder = tmp_path_factory.mktemp("spare")
    adapted.save_base(folder / "base", adapted.CONFIGS["llama, untied"], spare_rows=40)
    for task in ("a", "b"):
        (folder / task).mkdir()
        for split, count in (("train", 8), ("test", 2)):
            lines = [json.dumps(row) for row in small.examples(task, count).to_pylist()]
            (folder / task / f"{split}.jsonl").write_text("\n".join(lines))
    return folder


def experiment(folder: Path, **changes: Any) -> ExperimentConfig:
    """One task after which there is no other: a stage of two steps."""
    sections: dict[str, Any] = {
        "method": "l4",
        "stream": [{"name": "a", "path": folder / "a", "metric": "em", "train": "all", "test": "all"}],
        "model": {"name": str(folder / "base")},
        "training": {"epochs": 1, "batch_size": 4},
        "optim": {"variant": "torch", "lr": 1e-2},
        "evaluation": {"max_new_tokens": 2},
        "distillation": {"batches": "shared"},
    }
    return ExperimentConfig.model_validate(sections | changes)


def run(config: ExperimentConfig, folder: Path) -> tuple[RunDirectory, list[str]]:
    """Run it; returns its directory and the warnings of equal peers."""
    setup, directory = new_run(config, IN_PROCESS, folder)
    session = start(setup, IN_PROCESS, directory)
    finish(session)
    return directory, [event for event in session.snapshot().events if "will stay equal" in event]


def difference(directory: RunDirectory) -> float:
    one, other = (load_file(directory.checkpoint(0, 1, s) / "model.safetensors") for s in (0, 1))
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        ({}, "peers.init: own, or a dropout (peers.each.N.dropout)"),
        ({"peers": {"count": 2, "each": [{"seed": 3}, {"seed": 3}]}}, "peers.init: own"),
        ({"peers": {"init": "own"}}, None),
        ({"peers": {"count": 2, "each": [{}, {"seed": 3}]}}, None),
        ({"peers": {"count": 2, "each": [{}, {"lr": 1e-3}]}}, None),
        ({"distillation": {"schedule": "alternate_epochs"}}, None),
        ({"method": "lamol"}, None),
        ({"distillation": {"batches": "own"}}, None),
        ({"distillation": {"batches": "auto"}}, None),
        ({"distillation": {"batches": "shared", "on_policy": 1.0}}, "distillation.batches: own"),
    ],
    ids=[
        *("equal", "one seed for both", "own init", "own seed", "own rate", "in turn", "alone", "own batches"),
        *("by default", "own answers do not help"),
    ],
)
def test_a_model_with_spare_rows(folder: Path, tmp_path: Path, changes: dict[str, Any], remedy: str | None) -> None:
    directory, warnings = run(experiment(folder, **changes), tmp_path / "run")
    assert len(warnings) == (remedy is not None)
    assert remedy is None or "students 0 and 1 teach each other, but have equal weights" in warnings[0]
    assert remedy is None or remedy in warnings[0]
    if len(list(directory.path.glob("checkpoints/*/*/*"))) == 2:
        # Answers of their own differ, but not what equal teachers predict for them, up to rounding.
        assert (difference(directory) < 1e-7) == (remedy is not None), "the warning is true"


def test_adapters_name_their_own_remedy(folder: Path, tmp_path: Path) -> None:
    model = {"name": str(folder / "base"), "lora": {"rank": 2, "dropout": 0.0}}
    _, warnings = run(experiment(folder, model=model), tmp_path / "run")
    assert "peers.init: own, or a dropout (model.lora.dropout)" in warnings[0]
    assert not run(experiment(folder, model=model, peers={"init": "own"}), tmp_path / "own")[1]
    model["lora"]["dropout"] = 0.2  # type: ignore[index]
    assert not run(experiment(folder, model=model), tmp_path / "dropout")[1]


def test_a_checkpoint_that_has_learned_all_tasks_has_nothing_to_draw(folder: Path, tmp_path: Path) -> None:
    """``peers.init: own`` then changes nothing, so it is no remedy."""
    first, _ = run(experiment(folder, method="lamol"), tmp_path / "first")
    model = {"name": str(first.checkpoint(0, 1, 0))}
    _, warnings = run(experiment(folder, model=model, peers={"init": "own"}), tmp_path / "second")
    assert len(warnings) == 1
    assert "peers.init: own" not in warnings[0]
    assert "another learning rate or model for one (peers.each)" in warnings[0]


def test_a_later_stage_is_looked_at_too(folder: Path, tmp_path: Path) -> None:
    """Each student replays its own examples, from the second stage on: they part there, and not before."""
    tasks = [{"name": t, "path": folder / t, "metric": "em", "train": "all", "test": "all"} for t in ("a", "b")]
    config = experiment(folder, stream=tasks, replay={"ratio": 1.0, "max_length": 8})
    directory, warnings = run(config, tmp_path / "run")
    assert len(warnings) == 1, "and not once a stage"
    one, other = (load_file(directory.checkpoint(1, 1, s) / "model.safetensors") for s in (0, 1))
    assert all(one[name].equal(other[name]) for name in one)


def test_a_checkpoint_keeps_its_tasks_and_their_rows(folder: Path, tmp_path: Path) -> None:
    """The new task gets a spare token, whose rows are drawn; the user is told what is not replayed."""
    first, _ = run(experiment(folder, method="lamol"), tmp_path / "first")
    checkpoint = first.checkpoint(0, 1, 0)
    old = json.loads((checkpoint / "task_tokens.json").read_text())
    stream = [{"name": "b", "path": folder / "b", "metric": "em", "train": "all", "test": "all"}]
    config = experiment(
        folder, method="lamol", model={"name": str(checkpoint)}, stream=stream, optim={"variant": "torch", "lr": 1e-9}
    )
    setup, directory = new_run(config, IN_PROCESS, tmp_path / "second")
    session = start(setup, IN_PROCESS, directory)
    finish(session)
    (warning,) = [event for event in session.snapshot().events if "warning" in event]
    assert "has learned a. This run replays only tasks of its own stream" in warning
    new = json.loads((directory.checkpoint(0, 1, 0) / "task_tokens.json").read_text())
    assert new["gen"] == {**old["gen"], "b": old["spares"][0]}
    assert new["spares"] == old["spares"][1:]
    before, after = (
        load_file(f / "model.safetensors")["model.embed_tokens.weight"]
        for f in (checkpoint, directory.checkpoint(0, 1, 0))
    )
    assert after.shape == before.shape
    changed = ((after - before).abs().max(dim=1).values > 1e-6).nonzero().flatten().tolist()
    assert changed == [old["spares"][0]], "at such a rate nothing else moves"
