"""A step in several micro-batches equals the step in one, and runs no more often than necessary."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ray_l4.errors import PeerError
from ray_l4.learner.micro_batches import MicroBatch, concatenate, select, split
from ray_l4.learner.peer_model import PeerModel
from ray_l4.learner.stage_run import StageRun
from ray_l4.text.batches import Batch, build_batch
from tests.learner import learner_fixtures as small
from tests.learner import shard_fixtures as shards
from tests.learner.shard_fixtures import assert_same

HEADS = ("qa", "lm")


@pytest.mark.parametrize("micro_batch", [1, 2, 3])
@pytest.mark.parametrize("scenario", shards.SCENARIOS)
def test_micro_batches_learn_the_same_as_the_whole_batch(scenario: str, micro_batch: int) -> None:
    assert_same(shards.learn(shards.begun(scenario, micro_batch=micro_batch)), scenario)


def begun(micro_batch: int | None, method: str = "l4", dropout: float = 0.1) -> list[StageRun]:
    """Begin a stage of eleven examples, four per step, with one or two students."""
    shape = {"layers": 2, "width": 32, "heads": 2, "positions": 64, "dropout": dropout}
    config, tok = small.experiment(model={"from_scratch": shape}), small.tokenizer()
    learners = small.peers(config, tok, method)
    for learner in learners:
        learner.micro_batch = micro_batch
    return small.begun(learners, small.tokens(tok))


def under_way(run: StageRun) -> Sequence[MicroBatch]:
    """Return the micro-batches of the step that is under way."""
    work = run._under_way
    assert work is not None
    return work.micro_batches


def test_a_micro_batch_of_the_whole_batch_changes_no_bit() -> None:
    """This includes dropout: a batch that is not split draws the same random numbers as without micro-batches."""
    one, other = begun(None), begun(4)
    steps = dict.fromkeys((0, 1), range(6))
    assert small.train(one, steps) == small.train(other, steps)
    for mine, theirs in zip(one, other, strict=True):
        pairs = zip(mine.learner.model.parameters(), theirs.learner.model.parameters(), strict=True)
        assert all(torch.equal(x, y) for x, y in pairs)


class Calls:
    """Records the calls of a model: number of rows, and whether a graph is kept."""

    def __init__(self, learner: PeerModel) -> None:
        self.seen: list[tuple[int, bool]] = []
        learner._position_logits.register_forward_hook(self._note)

    def _note(self, module: Any, inputs: tuple[Tensor, Tensor], outputs: Any) -> None:
        self.seen.append((len(inputs[0]), outputs.hidden_ND.requires_grad))

    def take(self) -> list[tuple[int, bool]]:
        seen, self.seen = self.seen, []
        return seen


def test_micro_batches_run_twice_only_if_predictions_are_published() -> None:
    (run,) = begun(3, "lamol")
    calls = Calls(run.learner)
    run.forward(0, publish=False)
    assert calls.take() == [], "nobody asks what it predicts"
    run.backward(0, [])
    assert calls.take() == [(6, True), (2, True)], "two heads: three examples, then one"
    run.forward(1)
    assert calls.take() == [(6, False), (2, False)], "no graph is kept"
    run.backward(1, [])
    assert calls.take() == [(6, True), (2, True)]


def test_the_whole_batch_runs_once() -> None:
    (run,) = begun(None, "lamol")
    calls = Calls(run.learner)
    for publish in (True, False):
        step = run.next_step
        run.forward(step, publish=publish)
        run.backward(step, [])
        assert calls.take() == [(8, True)]


def test_a_micro_batch_draws_the_same_dropout_when_it_runs_again() -> None:
    """Otherwise the loss would belong to other predictions than those published."""
    run = begun(2)[0]
    published = run.forward(0)
    micro_batches = under_way(run)
    assert len(micro_batches) == 2
    for micro_batch in micro_batches:
        torch.rand(7)
        again = run._run(0, micro_batch)
        for head in HEADS:
            rows = micro_batch.distilled[head]
            assert micro_batch.num_distilled(head) == rows.stop - rows.start
            assert torch.equal(again[head].whole()[: rows.stop - rows.start], published.logits[head][rows])
    run.learner.model.eval()
    without = run._run(0, micro_batches[0])
    assert not torch.equal(without["qa"].whole()[:1], published.logits["qa"][:1])


def test_micro_batches_have_different_dropout() -> None:
    run = begun(2, dropout=0.5)[0]
    run.forward(0)
    first, second = under_way(run)
    same_examples = run._run(0, first)["qa"].whole()
    as_second = run._run(0, replace(first, first=second.first))["qa"].whole()
    assert not torch.equal(same_examples, as_second)


def test_targets_of_another_batch_are_refused() -> None:
    mine, other = begun(2)
    targets = other.forward(0).targets()
    mine.forward(0)
    short = {head: type(own)(own.log_probs_KV[:-1]) for head, own in targets.items()}
    count = targets["qa"].num_positions
    with pytest.raises(PeerError, match=rf"teacher predicted {count - 1} positions of head qa; expected {count}\."):
        mine.backward(0, [short])
    mine.backward(0, [targets])


def weighted(indices: list[int]) -> Batch:
    """Build a batch of some of ten examples."""
    return build_batch(some_tokens(), np.asarray(indices), HEADS, small.tokenizer(), 5.0)


@cache
def some_tokens() -> pa.Table:
    """Build a table of six current examples and four replayed ones."""
    return small.tokens(small.tokenizer(), current=6, replayed=4)


def scored(batch: Batch, head: Any) -> Iterator[tuple[tuple[int, ...], int, float]]:
    """Yield for every position that bears a loss the tokens up to it, its target and its weight."""
    own, width = batch.heads[head], batch.input_ids_RT.shape[1]
    for position, target, weight in zip(own.positions_N, own.targets_N, own.weights_N, strict=True):
        row, column = divmod(int(position), width)
        yield tuple(batch.input_ids_RT[row, : column + 1].tolist()), int(target), float(weight)


@settings(max_examples=50)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=8, unique=True), st.data())
def test_a_selection_equals_the_batch_built_from_its_examples(indices: list[int], data: st.DataObject) -> None:
    """Tokens and padding equal those of a batch built from these examples only."""
    start = data.draw(st.integers(0, len(indices) - 1))
    stop = data.draw(st.integers(start + 1, len(indices)))
    found, expected = select(weighted(indices), range(start, stop)), weighted(indices[start:stop])
    assert torch.equal(found.input_ids_RT, expected.input_ids_RT)
    for head in HEADS:
        assert found.heads[head].num_current == expected.heads[head].num_current
        assert list(scored(found, head)) == list(scored(expected, head))
    counts = ("num_examples", "num_current_examples", "num_tokens")
    assert [getattr(found, name) for name in counts] == [getattr(expected, name) for name in counts]


@settings(max_examples=50)
@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=8, unique=True),
    st.integers(1, 4),
    st.none() | st.integers(1, 4),
    st.booleans(),
)
def test_the_micro_batches_of_all_ranks_cover_the_batch(
    indices: list[int], ranks: int, size: int | None, distil_all: bool
) -> None:
    """Every position occurs once with its weight in the whole batch, and every distilled one in one rank's targets."""
    batch = weighted(indices)
    if distil_all:
        whole = {head: replace(own, num_distilled=len(own.targets_N)) for head, own in batch.heads.items()}
        batch = replace(batch, heads=whole)
    of_ranks = [split(batch, rank, ranks, size) for rank in range(ranks)]
    for head in HEADS:
        found = [item for parts in of_ranks for part in parts for item in scored(part.batch, head)]
        assert sorted(found) == sorted(scored(batch, head))
        own = batch.heads[head]
        distilled = len(own.targets_N) if distil_all else own.num_current
        assert sum(parts[-1].distilled[head].stop for parts in of_ranks) == distilled
        for parts in of_ranks:
            rows = [row for part in parts for row in range(part.distilled[head].start, part.distilled[head].stop)]
            assert rows == list(range(parts[-1].distilled[head].stop)), "no gap between micro-batches"
    firsts = [part.first for parts in of_ranks for part in parts if part.batch.num_examples]
    assert len(set(firsts)) == len(firsts), "no two micro-batches draw the same dropout"


def test_a_rank_without_examples_runs_a_token_that_bears_no_loss() -> None:
    (blank,) = split(weighted([3]), rank=1, num_ranks=2)
    assert blank.batch.input_ids_RT.shape == (1, 1)
    assert all(len(own.positions_N) == own.num_current == 0 for own in blank.batch.heads.values())
    assert all(rows == slice(0, 0) for rows in blank.distilled.values())
    (whole,) = split(weighted([3]), rank=0, num_ranks=2)
    assert whole.first is None, "the other one has all there is, as if it were alone"


def test_predictions_of_micro_batches_are_concatenated_in_order() -> None:
    whole, parts = begun(None, dropout=0.0)[0].forward(0), begun(1, dropout=0.0)[0].forward(0)
    run = begun(1, dropout=0.0)[0]
    run.forward(0)
    assert len(under_way(run)) == 4
    assert parts.output is not None
    for head in HEADS:
        assert whole.logits[head].shape == parts.logits[head].shape
        # In the whole batch current examples come first; in parts they are mixed. The values are the same.
        for mine in (parts.logits[head], parts.hidden[head] @ parts.output.weight_VD.T):
            ordered = [rows[rows[:, 0].argsort()] for rows in (whole.logits[head], mine)]
            assert torch.allclose(*ordered, atol=1e-4)
    assert concatenate([whole]) is whole
