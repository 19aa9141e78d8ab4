"""Students that span several ranks, in a whole run: what they learn, and what is refused before it begins."""

from __future__ import annotations

import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from ray_l4.errors import ConfigError, PeerLostError
from ray_l4.run.session import start
from ray_l4.setup.rank_check import check_ranks
from ray_l4.setup.setup import prepare
from ray_l4.store.run_directory import RunDirectory
from ray_l4.store.states import states
from ray_l4.workers.ranks import other_ranks, sharding_of
from ray_l4.workers.rendezvous import RendezvousStore, join
from tests.run import run_fixtures as small
from tests.run.test_run_faults import actor_processes, outcome, strike

TOLERANCE = 1e-5


def experiment(**changes: Any) -> Any:
    """Two peers that differ from the start and have no dropout, whose stream of numbers follows the pieces."""
    shape = {"layers": 1, "width": 32, "heads": 2, "positions": 96, "vocabulary": 400, "dropout": 0.0}
    sections: dict[str, Any] = {
        "stream": [{"name": "mini.rest", "train": 15, "test": 4}, {"name": "mini.woz", "train": 10, "test": 4}],
        "model": {"from_scratch": shape},
        "training": {"epochs": 2, "batch_size": 7},
        "optim": {"variant": "torch", "lr": 2e-3, "eps": 1e-4},
        "peers": {"init": "own"},
        "replay": {"ratio": 0.5, "chunk": 8, "max_length": 40},
    }
    return small.experiment(**sections | changes)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> small.Finished:
    """One rank each, in one process."""
    return small.complete_run(experiment(), small.cluster("in_process"), tmp_path_factory.mktemp("r") / "run")


@pytest.mark.parametrize(
    ("transport", "sharding", "micro_batch"), [("object_store", "data", None), ("collective", "full", 2)]
)
def test_two_peers_of_two_ranks_learn_what_two_peers_of_one_learn(
    reference: small.Finished,
    tmp_path: Path,
    ray_cluster: None,
    transport: str,
    sharding: str,
    micro_batch: int | None,
) -> None:
    students = {"cpus": 0.5, "shards_per_student": 2, "sharding": sharding, "micro_batch": micro_batch}
    profile = small.cluster(transport, students=students)
    run, summary = small.complete_run(experiment(), profile, tmp_path / "run")
    expected, of_expected = reference
    mine, theirs = small.weights(run), small.weights(expected)
    assert len(theirs) == 4 and mine.keys() == theirs.keys()
    for name in theirs:
        assert_close(mine[name], theirs[name])
    assert small.replayed(run) == small.replayed(expected)
    assert small.scores(run) == small.scores(expected)
    assert summary["score_matrix"] == of_expected["score_matrix"]
    assert_same_figures(run, expected)
    assert {f"student-{peer}{shard}" for peer in range(2) for shard in ("", ".shard-1")} <= set(
        summary["peak_memory_bytes"]
    )


def assert_close(found: bytes, expected: bytes) -> None:
    mine, theirs = safetensors.torch.load(found), safetensors.torch.load(expected)
    assert mine.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert mine[name].shape == tensor.shape
        assert float((mine[name] - tensor).norm()) <= TOLERANCE * float(tensor.norm()) + 1e-7, name


def assert_same_figures(run: RunDirectory, expected: RunDirectory) -> None:
    """Those of the whole step, not of a rank's share of it."""
    mine, theirs = run.step_figures(), expected.step_figures()
    assert len(mine) == len(theirs) > 10
    for name in ("stage", "step", "student", "loss", "nll_qa", "kd_qa", "nll_lm", "kd_lm", "grad_norm", "lr"):
        np.testing.assert_allclose([row[name] for row in mine], [row[name] for row in theirs], 1e-4, 1e-5, err_msg=name)
    for name in ("samples", "tokens"):
        assert [row[name] for row in mine] == [row[name] for row in theirs]
    assert all(row["bytes_sent"] > 0 for row in mine)


def test_a_rank_that_dies_is_replaced_from_the_newest_state(tmp_path: Path, ray_cluster: None) -> None:
    """Every rank has its own part of a state: its slices of weights and moments."""
    stream = [{"name": "mini.woz", "train": 80, "test": 4}, {"name": "mini.sql", "train": 8, "test": 4}]
    config = small.long_enough(stream=stream, checkpoint={"every_steps": 5})
    ranks = {"cpus": 0.5, "shards_per_student": 2, "sharding": "full"}
    profile = small.cluster("collective", students=ranks, evaluators={"count": 1})
    expected, _ = small.complete_run(config, profile, tmp_path / "expected")
    setup, run = small.new_run(config, profile, tmp_path / "run")
    before = set(actor_processes("Student"))
    session = start(setup, profile, run)
    deadline = time.monotonic() + small.LIMIT
    while not states(run, 0) and time.monotonic() < deadline:
        assert not session.wait(0.05), session.result()
    strike(session, "training", "Student", before, signal.SIGKILL, max)
    summary, events = outcome(session)
    small.assert_equal(run, expected)
    assert summary["restarts"] == 1
    assert re.search(r"is lost and replaced(.|\n)*going on after \d", events), events
    steps = [(row["stage"], row["student"], row["step"]) for row in run.step_figures()]
    assert len(steps) == len(set(steps)) == len(expected.step_figures())


def test_micro_batches_without_ranks_learn_the_same(reference: small.Finished, tmp_path: Path) -> None:
    profile = small.cluster("in_process", students={"micro_batch": 3})
    run, _ = small.complete_run(experiment(), profile, tmp_path / "run")
    expected = small.weights(reference[0])
    for name, found in small.weights(run).items():
        assert_close(found, expected[name])
    assert_same_figures(run, reference[0])


def students(**more: Any) -> dict[str, Any]:
    return {"students": {"shards_per_student": 2} | more}


@pytest.mark.parametrize(
    ("changes", "profile", "message"),
    [
        ({}, students(shards_per_student=8), r"shards_per_student: 8 ranks share a batch of 7.*so 1 would have"),
        (
            {"training": {"batch_size": "auto"}},
            students(shards_per_student=5),
            r"batch of 4 examples.*batch_size: auto",
        ),
        ({"method": "ewc"}, students(sharding="full"), r"sharding: full.*method: ewc compares.*sharding: data"),
        ({"method": "mas"}, students(sharding="full"), r"sharding: full.*method: mas compares"),
        ({"method": "agem"}, students(sharding="full"), r"sharding: full.*method: agem compares"),
        ({}, students(sharding="full") | {"exchange": {"codec": "factored"}}, r"sharding: full.*exchange\.codec: fact"),
        (
            {"peers": {"on_peer_loss": "continue"}},
            students(),
            r"on_peer_loss: continue.*shards_per_student: 2.*restart",
        ),
    ],
)
def test_what_ranks_cannot_learn_is_refused_before_anything_starts(
    changes: dict[str, Any], profile: dict[str, Any], message: str
) -> None:
    setup = prepare(experiment(**changes))
    with pytest.raises(ConfigError, match=message):
        check_ranks(setup, small.cluster("object_store", **profile))


@pytest.mark.parametrize("profile", [students(), students(sharding="full"), students(shards_per_student=7), {}])
def test_what_ranks_can_learn_is_not(profile: dict[str, Any]) -> None:
    check_ranks(prepare(experiment()), small.cluster("object_store", **profile))


def test_a_rank_that_does_not_answer_is_told_as_a_lost_peer() -> None:
    device, address = torch.device("cpu"), "127.0.0.1"
    store = RendezvousStore.open(address, 2.0)
    members = store.members("test", 2)
    with ThreadPoolExecutor(2) as pool:
        mine, _silent = pool.map(lambda member: join(member, device, address), members)
    with pytest.raises(PeerLostError, match=r"student 3: one of its ranks is gone: .*gloo"), other_ranks(3):
        mine.allreduce([torch.ones(3)]).wait()
    with pytest.raises(RuntimeError, match="something else"), other_ranks(3):
        raise RuntimeError("something else")


def test_ranks_that_do_not_meet_are_told_at_once_and_not_for_ever(ray_cluster: None) -> None:
    store = RendezvousStore.open("127.0.0.1", 0.5)
    for kind in ("data", "full"):
        with pytest.raises(PeerLostError, match=r"rank 0 of 2.*did not meet the others"):
            sharding_of(store.members(f"test-{kind}", 2)[0], kind, torch.device("cpu"))
