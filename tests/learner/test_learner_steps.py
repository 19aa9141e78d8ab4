"""What holds from step to step: determinism, order, and that lambda = 0 is LAMOL."""

from __future__ import annotations

import pytest
import torch

from ray_l4.errors import PeerError
from ray_l4.learner.learner import Learner
from tests.learner import learner_fixtures as small


def run_steps(learners: list[Learner], steps: range) -> list[list[dict[str, float]]]:
    """The in-process loop, two lines of it."""
    figures = []
    for step in steps:
        sent = [learner.forward(step) for learner in learners]
        teachers = [[sent[j].targets() for j in range(len(learners)) if j != i] for i in range(len(learners))]
        figures.append([learner.backward(step, t) for learner, t in zip(learners, teachers, strict=True)])
    return figures


def begun(learners: list[Learner], table: object, stage: int = 1) -> list[Learner]:
    for learner in learners:
        learner.begin_stage(stage, table)
    return learners


def same_weights(one: Learner, other: Learner) -> bool:
    pairs = zip(one.model.state_dict().values(), other.model.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


@pytest.mark.parametrize("peers", [2, 3])
def test_lambda_zero_is_lamol_bit_for_bit(peers: int) -> None:
    tok = small.tokenizer()
    table = small.tokens(tok)
    l4 = begun(small.peers(small.experiment(distillation={"weight": 0.0}), tok, "l4", peers), table)
    lamol = begun(small.peers(small.experiment(method="lamol"), tok, "lamol"), table)
    with_peers = run_steps(l4, range(l4[0].sampler.num_steps))
    alone = run_steps(lamol, range(lamol[0].sampler.num_steps))
    assert same_weights(l4[0], lamol[0])
    assert [f[0]["loss"] for f in with_peers] == [f[0]["loss"] for f in alone]
    assert all(f[0]["kd_qa"] > 0 for f in with_peers), "disagreement is measured even where nothing is learned from it"


def test_lambda_above_zero_is_not_lamol() -> None:
    tok = small.tokenizer()
    table = small.tokens(tok)
    l4 = begun(small.peers(small.experiment(), tok), table)
    lamol = begun(small.peers(small.experiment(), tok, "lamol"), table)
    run_steps(l4, range(4))
    run_steps(lamol, range(4))
    assert not same_weights(l4[0], lamol[0])


def test_the_same_seed_gives_the_same_weights_and_another_seed_others() -> None:
    tok = small.tokenizer()
    table = small.tokens(tok)
    one, two = (begun(small.peers(small.experiment(), tok), table) for _ in range(2))
    other = begun(small.peers(small.experiment(seed=1), tok), table)
    for learners in (one, two, other):
        run_steps(learners, range(3))
    assert same_weights(one[0], two[0])
    assert same_weights(one[1], two[1])
    assert not same_weights(one[0], other[0])


def test_peers_start_equal_and_part_by_dropout() -> None:
    tok = small.tokenizer()
    learners = begun(small.peers(small.experiment(), tok), small.tokens(tok))
    assert same_weights(*learners)
    run_steps(learners, range(2))
    assert not same_weights(*learners)


def test_peers_may_start_from_weights_of_their_own() -> None:
    learners = small.peers(small.experiment(peers={"init": "own"}), small.tokenizer())
    assert not same_weights(*learners)


def test_a_peer_restored_between_steps_goes_on_as_if_nothing_had_happened() -> None:
    """Randomness belongs to (seed, peer, stage, step), so whatever else drew numbers in between does not matter."""
    tok = small.tokenizer()
    table = small.tokens(tok)
    calm, disturbed = (begun(small.peers(small.experiment(), tok), table) for _ in range(2))
    run_steps(calm, range(4))
    run_steps(disturbed, range(2))
    torch.rand(1000)
    run_steps(disturbed, range(2, 4))
    assert same_weights(calm[0], disturbed[0])


def test_steps_out_of_order_are_refused() -> None:
    tok = small.tokenizer()
    (learner,) = begun(small.peers(small.experiment(), tok, "lamol"), small.tokens(tok))
    with pytest.raises(PeerError, match=r"student 0, stage 1, step 3.*next call is for step 0"):
        learner.forward(3)
    with pytest.raises(PeerError, match="backward before forward"):
        learner.backward(0, [])
    learner.forward(0)
    with pytest.raises(PeerError, match="asked for forward"):
        learner.forward(0)
    with pytest.raises(PeerError, match="backward before forward"):
        learner.backward(1, [])


def test_a_loss_that_is_not_finite_stops_the_run_before_it_spoils_the_weights() -> None:
    tok = small.tokenizer()
    (learner,) = begun(small.peers(small.experiment(), tok, "lamol"), small.tokens(tok))
    with torch.no_grad():
        learner.model.transformer.ln_f.weight.fill_(float("inf"))
    before = learner.model.transformer.wte.weight.clone()
    learner.forward(0)
    with pytest.raises(PeerError, match=r"student 0, stage 1, step 0: loss or gradient is not finite.*optim\.lr"):
        learner.backward(0, [])
    assert torch.equal(before, learner.model.transformer.wte.weight)


def test_learning_lowers_the_loss() -> None:
    tok = small.tokenizer()
    faster = {"variant": "torch", "lr": 5e-3, "eps": 1e-8}
    config = small.experiment(training={"epochs": 12, "batch_size": 4}, optim=faster)
    learners = begun(small.peers(config, tok), small.tokens(tok))
    figures = run_steps(learners, range(learners[0].sampler.num_steps))
    for peer in range(2):
        assert figures[-1][peer]["loss"] < 0.8 * figures[0][peer]["loss"]


def test_the_reported_tokens_are_those_that_bear_a_loss() -> None:
    tok = small.tokenizer()
    table = small.tokens(tok)
    learners = begun(small.peers(small.experiment(), tok, "lamol"), table)
    rows = table.take(learners[0].sampler.indices(0)).to_pylist()
    (figures,) = run_steps(learners, range(1))
    answers = sum(len(row["ids"]) - row["prompt_length"] + 1 for row in rows)
    assert figures[0]["tokens"] == answers + sum(len(row["ids"]) + 1 for row in rows)
    assert figures[0]["samples"] == len(rows)
