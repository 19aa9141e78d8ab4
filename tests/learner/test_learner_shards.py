"""A student with several ranks learns the same as one with a single rank."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel

from ray_l4.learner.learner import Learner
from ray_l4.learner.micro_batches import micro_batch_spans
from ray_l4.learner.sharding import ALONE, Alone
from tests.learner import shard_fixtures as shards
from tests.learner.shard_fixtures import FullyLearned, alone, assert_same

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 200.0


def test_the_scenarios_are_not_trivial() -> None:
    """Students learn from each other, and some ranks have no examples in some steps."""
    mine, other = alone("l4")
    assert sum(figures["kd_qa"] > 1e-3 for figures in mine.figures) >= 4, "in the others no example is current"
    assert [figures["samples"] for figures in mine.figures] == [5, 5, 1, 5, 5, 1]
    assert not torch.equal(mine.weights["transformer.wte.weight"], other.weights["transformer.wte.weight"])
    assert any(figures["grad_norm"] > 0.5 for figures in alone("everything")[0].figures), "clipping has an effect"


@pytest.mark.parametrize(("size", "micro_batch"), [(2, None), (3, None), (2, 2)])
@pytest.mark.parametrize("scenario", shards.SCENARIOS)
def test_data_parallel_ranks_learn_the_same_as_one_rank(scenario: str, size: int, micro_batch: int | None) -> None:
    ranks = [shards.begun(scenario, shardings, micro_batch) for shardings in shards.groups(size)]
    first, *others = shards.at_once(shards.learn, ranks)
    assert_same(first, scenario)
    for rank in others:
        for mine, theirs in zip(rank, first, strict=True):
            assert mine.figures == theirs.figures, "every rank gives the figures of the whole step"
            assert all(torch.equal(mine.weights[name], theirs.weights[name]) for name in theirs.weights)
            assert (len(mine.saved), len(theirs.saved)) == (0, len(alone(scenario)[0].saved)), "the first one answers"


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int | None], FullyLearned]:
    return fully_sharded(tmp_path_factory.mktemp("full"), "FULL")


def fully_sharded(folder: Path, scenarios: str) -> Callable[[str, int | None], FullyLearned]:
    """Train two fully sharded ranks, each in its own process: PyTorch has one default group per process."""
    script = "import sys; from pathlib import Path; from tests.learner import shard_fixtures as own; "
    started = [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                f"{script}own.fully_sharded({rank}, 2, Path(sys.argv[1]), own.{scenarios})",
                str(folder),
            ],
            cwd=ROOT,
            env=os.environ | {"GLOO_SOCKET_IFNAME": "lo"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=LIMIT)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], "\n".join(said)

    def of(scenario: str, micro_batch: int | None) -> FullyLearned:
        with torch.serialization.safe_globals([FullyLearned, shards.Learned]):
            done: FullyLearned = torch.load(folder / f"{scenario}-{micro_batch}.pt", weights_only=True)
        return done

    return of


@pytest.mark.processes
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="compilation for a CPU needs a C++ compiler")
def test_fully_sharded_ranks_with_compiled_blocks_learn_the_same(tmp_path: Path) -> None:
    assert_same(fully_sharded(tmp_path, "COMPILED")("compiled", None).learned, "compiled")


@pytest.mark.processes
@pytest.mark.parametrize(("scenario", "micro_batch"), shards.FULL)
def test_fully_sharded_ranks_learn_the_same_as_one_rank(
    full: Callable[[str, int | None], FullyLearned], scenario: str, micro_batch: int | None
) -> None:
    assert_same(full(scenario, micro_batch).learned, scenario)


@pytest.mark.processes
def test_fully_sharded_ranks_hold_slices_and_return_whole_weights(
    full: Callable[[str, int | None], FullyLearned],
) -> None:
    done = full("l4", None)
    assert done.share == pytest.approx(0.5, abs=0.02)
    mine = done.learned[0].saved
    assert len(mine) == len(alone("l4")[0].saved), "tied weights once, as an unsharded student has them"
    assert done.restored == mine
    assert "weights do not fit the model" in done.refusal and "size mismatch" in done.refusal


def test_the_first_rank_returns_the_weights_of_a_checkpoint() -> None:
    ranks = [shards.begun("lamol", shardings) for shardings in shards.groups(2)]
    saved = [runs[0].learner.weights() for runs in ranks]
    other, single = shards.begun("l4")[1].learner, shards.begun("lamol")[0].learner
    other.load(saved[0])
    assert other.weights().tobytes() == saved[0].tobytes() == single.weights().tobytes()
    assert saved[1].size == 0


@pytest.mark.parametrize("again", ["begin_stage", "abandon"])
def test_a_failed_step_leaves_no_gradients(again: str) -> None:
    """The sum over the ranks fails, because one of them is gone, after the gradients have been computed."""
    run = shards.begun("lamol", [_Forsaken()])[0]
    learner = run.learner
    assert isinstance(learner, Learner)
    run.forward(0)
    with pytest.raises(RuntimeError, match="gone"):
        run.backward(0, [])
    assert any(parameter.grad is not None for parameter in learner.model.parameters())
    learner.sharding = ALONE
    if again == "abandon":
        assert run.abandon() == 0
    else:
        run = learner.begin_stage(1, run.tokens)
    assert all(parameter.grad is None for parameter in learner.model.parameters())
    assert_same(shards.learn([run]), "lamol")


class _Forsaken(Alone):
    """A rank that has lost the other ranks."""

    def add_up(self, model: PreTrainedModel, figures: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("gone")


@given(
    examples=st.integers(1, 40),
    ranks=st.integers(1, 9),
    micro_batch=st.none() | st.integers(1, 12),
)
def test_every_example_is_in_exactly_one_micro_batch(examples: int, ranks: int, micro_batch: int | None) -> None:
    of_ranks = [micro_batch_spans(examples, rank, ranks, micro_batch) for rank in range(ranks)]
    assert [index for spans in of_ranks for span in spans for index in span] == list(range(examples))
    assert len({len(spans) for spans in of_ranks}) == 1, "sharded weights come together for all ranks at once"
    sizes = [sum(map(len, spans)) for spans in of_ranks]
    assert max(sizes) - min(sizes) <= 1
    assert all(len(span) <= (micro_batch or examples) for spans in of_ranks for span in spans)
    assert len(of_ranks[0]) == -(-sizes[0] // (micro_batch or sizes[0])), "no more micro-batches than it takes"
