"""The examples of a stage: the same current ones for all students, and the method's choice of earlier ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ray_l4.cluster.evaluators import Evaluators
from ray_l4.cluster.handles import EvaluatorHandle
from ray_l4.cluster.membership import Membership
from ray_l4.config.cluster import ClusterConfig
from ray_l4.config.experiment import ExperimentConfig
from ray_l4.run.examples import StageExamples, StudentExamples
from ray_l4.run.stored_replay import reservoir, stored_replay
from ray_l4.run.work_queue import WorkQueue
from ray_l4.setup.setup import Setup, prepare
from ray_l4.store.run_directory import RunDirectory
from ray_l4.text.sampler import Sampler
from ray_l4.text.tokens import concatenated, sequence_lengths
from tests.cluster.cluster_fixtures import StandInSpawner
from tests.run import run_fixtures as small
from tests.run.worker_fixtures import StandIn


class Generator:
    """Generates, from weights and a seed, token ids of which a third are no valid pseudo-example."""

    def ready(self) -> None:
        """An object of this process is."""

    def __init__(self, setup: Setup) -> None:
        self.ans = setup.tokenizer.ans

    def replay(
        self,
        checkpoint: str,
        description: Any,
        weights: str,
        student: int,
        gens: list[int],
        seeds: list[int],
        longest: int,
    ) -> list[Any]:
        assert weights == f"weights {student}" and description == {"model": student}
        return [
            np.asarray([gen, seed % 250, *([self.ans] if seed % 3 else []), student + 1], np.int32)
            for gen, seed in zip(gens, seeds, strict=True)
        ]


def stage_examples(setup: Setup, path: Path, lost: Mapping[int, str]) -> StageExamples:
    """Return a collector of examples whose students have nothing but weights."""
    context = small.bare_context(setup, path)
    spawner = StandInSpawner(lambda slot: [StandIn(slot)], range(setup.topology.size))
    membership = Membership(spawner, ClusterConfig(), setup.topology, lost)
    queue = WorkQueue(spawner.rpc, Evaluators([EvaluatorHandle(spawner.rpc, Generator(setup))]), 10, context.timeline)
    descriptions = {student: {"model": student} for student in setup.topology.students}
    checkpoints: Any = SimpleNamespace(descriptions=descriptions)
    return StageExamples(context, spawner.rpc, membership, queue, checkpoints, None)


def given(
    config: ExperimentConfig, stage: int, path: Path, lost: Mapping[int, str] | None = None
) -> tuple[Setup, dict[int, StudentExamples]]:
    """Return an experiment's set-up, and what each of its students is given for a stage."""
    setup = prepare(config)
    return setup, stage_examples(setup, path, lost or {}).of(stage, lambda: None)


def table(given: StudentExamples) -> pa.Table:
    found: pa.Table = given.tokens.value  # type: ignore[attr-defined]
    assert given.num_examples == found.num_rows
    return found


@pytest.mark.parametrize("peers", [2, 3])
def test_with_replay_of_their_own_students_still_see_the_same_current_examples(tmp_path: Path, peers: int) -> None:
    config = small.quick("l4", replay={"generator": "own"}, peers={"count": peers})
    setup, found = given(config, 1, tmp_path)
    current = setup.training["mini.woz"]
    tables = [table(found[student]) for student in range(peers)]
    assert len({own.num_rows for own in tables}) == 1
    replayed = [own.slice(current.num_rows) for own in tables]
    for student, (own, replay) in enumerate(zip(tables, replayed, strict=True)):
        assert own.slice(0, current.num_rows).equals(current), "at the same places"
        assert replay.num_rows > 0
        assert {ids[-1] for ids in replay["ids"].to_pylist()} == {student + 1}, "its own replay"
    for step_rows in zip(*(batches(own) for own in tables), strict=True):
        names = [[row for row in rows if row < current.num_rows] for rows in step_rows]
        assert all(rows == names[0] for rows in names), "in every batch, in the same order"


def batches(tokens: pa.Table) -> list[list[int]]:
    sampler = Sampler(sequence_lengths(tokens), 0, 1, epochs=2, batch_size=4)
    return [sampler.indices(step).tolist() for step in range(sampler.num_steps)]


@pytest.mark.parametrize("generator", ["first", "pool"])
def test_shared_replay_is_one_table_that_is_stored_once(tmp_path: Path, generator: str) -> None:
    config = small.quick("l4", replay={"generator": generator}, peers={"count": 3})
    setup, found = given(config, 1, tmp_path)
    assert set(found) == {0, 1, 2}
    assert len({id(found[student].tokens) for student in range(3)}) == 1
    tokens = table(found[0])
    current = setup.training["mini.woz"].num_rows
    assert 0 < tokens.num_rows - current <= 32
    voices = {ids[-1] for ids in tokens.slice(current)["ids"].to_pylist()}
    assert voices == ({1} if generator == "first" else {1, 2, 3})
    assert set(tokens.slice(current)["origin"].to_pylist()) == {"generated"}


def test_experience_replay_adds_stored_examples(tmp_path: Path) -> None:
    setup, found = given(small.quick("er"), 1, tmp_path)
    stored = stored_replay(setup, 1)
    assert stored is not None
    assert table(found[0]).equals(concatenated(setup.training["mini.woz"], stored))
    assert found[0].memory is None
    assert len(small.replayed(RunDirectory(tmp_path))) == stored.num_rows


@pytest.mark.parametrize("method", ["agem", "derpp"])
def test_gradients_are_guarded_by_stored_examples_and_nothing_is_replayed(tmp_path: Path, method: str) -> None:
    setup, found = given(small.quick(method), 1, tmp_path)
    assert table(found[0]).equals(setup.training["mini.woz"])
    memory: pa.Table = found[0].memory.value  # type: ignore[union-attr]
    assert memory.equals(reservoir(setup, 1))
    assert memory.num_rows == 20, "replay.capacity"


@pytest.mark.parametrize("method", ["l4", "er", "agem", "lamol"])
def test_the_first_stage_has_only_its_own_examples(tmp_path: Path, method: str) -> None:
    setup, found = given(small.quick(method), 0, tmp_path)
    for student in setup.topology.students:
        assert table(found[student]).equals(setup.training["mini.rest"])
        assert found[student].memory is None
    assert not (tmp_path / "replay").exists()


def test_all_tasks_at_once_are_one_table(tmp_path: Path) -> None:
    setup, found = given(small.quick("multi-qa-lm"), 0, tmp_path)
    tokens = table(found[0])
    assert tokens.equals(concatenated(setup.training["mini.rest"], setup.training["mini.woz"]))
    assert set(tokens["gen"].to_pylist()) == {setup.tokenizer.gen["mini.rest"]}, (
        "one token begins all (REFERENCE.md#other-modes)"
    )


def test_a_model_of_one_task_gets_that_task(tmp_path: Path) -> None:
    setup, found = given(small.quick("single-qa-lm"), 1, tmp_path)
    assert table(found[0]).equals(setup.training["mini.woz"])


@pytest.mark.parametrize("generator", ["first", "own", "pool"])
def test_a_lost_student_neither_generates_nor_is_given_anything(tmp_path: Path, generator: str) -> None:
    config = small.quick("l4", replay={"generator": generator}, peers={"count": 3})
    setup, found = given(config, 1, tmp_path, lost={0: "its node is gone"})
    assert set(found) == {1, 2}
    current = setup.training["mini.woz"].num_rows
    voices = {
        student: {ids[-1] for ids in table(own).slice(current)["ids"].to_pylist()} for student, own in found.items()
    }
    assert (
        voices
        == {
            "first": {1: {2}, 2: {2}},
            "own": {1: {2}, 2: {3}},
            "pool": {1: {2, 3}, 2: {2, 3}},
        }[generator]
    )
