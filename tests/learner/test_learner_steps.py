"""Properties of steps: determinism, order, and that a distillation weight of 0 gives LAMOL."""

from __future__ import annotations

import pytest
import torch

from ray_l4.errors import PeerError
from ray_l4.learner.stage_run import StageRun
from tests.learner import learner_fixtures as small


def run_steps(runs: list[StageRun], steps: range) -> list[list[dict[str, float]]]:
    """Run the step loop of two or more peers, reduced to two lines."""
    figures = []
    for step in steps:
        sent = [run.forward(step) for run in runs]
        teachers = [[sent[j].targets() for j in range(len(runs)) if j != i] for i in range(len(runs))]
        figures.append([run.backward(step, t) for run, t in zip(runs, teachers, strict=True)])
    return figures


def same_weights(one: StageRun, other: StageRun) -> bool:
    return small.same_weights(one.learner, other.learner)


@pytest.mark.parametrize("peers", [2, 3])
def test_lambda_zero_is_lamol_bit_for_bit(peers: int) -> None:
    tok = small.tokenizer()
    table = small.tokens(tok)
    l4 = small.begun(small.peers(small.experiment(distillation={"weight": 0.0}), tok, "l4", peers), table)
    lamol = small.begun(small.peers(small.experiment(method="lamol"), tok, "lamol"), table)
    with_peers = run_steps(l4, range(l4[0].num_steps))
    alone = run_steps(lamol, range(lamol[0].num_steps))
    assert same_weights(l4[0], lamol[0])
    assert [f[0]["loss"] for f in with_peers] == [f[0]["loss"] for f in alone]
    assert all(f[0]["kd_qa"] > 0 for f in with_peers), "disagreement is measured even where nothing is learned from it"


def test_lambda_above_zero_is_not_lamol() -> None:
    tok = small.tokenizer()
    table = small.tokens(tok)
    l4 = small.begun(small.peers(small.experiment(), tok), table)
    lamol = small.begun(small.peers(small.experiment(), tok, "lamol"), table)
    run_steps(l4, range(4))
    run_steps(lamol, range(4))
    assert not same_weights(l4[0], lamol[0])


def test_weights_follow_from_the_seed() -> None:
    tok = small.tokenizer()
    table = small.tokens(tok)
    one, two = (small.begun(small.peers(small.experiment(), tok), table) for _ in range(2))
    other = small.begun(small.peers(small.experiment(seed=1), tok), table)
    for runs in (one, two, other):
        run_steps(runs, range(3))
    assert same_weights(one[0], two[0])
    assert same_weights(one[1], two[1])
    assert not same_weights(one[0], other[0])


def test_peers_start_equal_and_diverge_by_dropout() -> None:
    tok = small.tokenizer()
    runs = small.begun(small.peers(small.experiment(), tok), small.tokens(tok))
    assert same_weights(*runs)
    run_steps(runs, range(2))
    assert not same_weights(*runs)


def test_peers_may_start_from_different_weights() -> None:
    learners = small.peers(small.experiment(peers={"init": "own"}), small.tokenizer())
    assert not small.same_weights(*learners)


def test_a_peer_restored_between_steps_continues_unchanged() -> None:
    """Seeds depend on (seed, peer, stage, step), so random numbers drawn elsewhere do not matter."""
    tok = small.tokenizer()
    table = small.tokens(tok)
    calm, disturbed = (small.begun(small.peers(small.experiment(), tok), table) for _ in range(2))
    run_steps(calm, range(4))
    run_steps(disturbed, range(2))
    torch.rand(1000)
    run_steps(disturbed, range(2, 4))
    assert same_weights(calm[0], disturbed[0])


def test_steps_out_of_order_are_refused() -> None:
    tok = small.tokenizer()
    (run,) = small.begun(small.peers(small.experiment(), tok, "lamol"), small.tokens(tok))
    with pytest.raises(
        PeerError, match=r"student 0, stage 1, step 3: forward was called out of order; expected forward of step 0"
    ):
        run.forward(3)
    with pytest.raises(PeerError, match="backward was called before forward"):
        run.backward(0, [])
    run.forward(0)
    with pytest.raises(PeerError, match="expected backward of step 0"):
        run.forward(0)
    with pytest.raises(PeerError, match="backward was called before forward"):
        run.backward(1, [])


def test_a_non_finite_loss_raises_before_the_weights_change() -> None:
    tok = small.tokenizer()
    (run,) = small.begun(small.peers(small.experiment(), tok, "lamol"), small.tokens(tok))
    transformer = run.learner.model.transformer
    with torch.no_grad():
        transformer.ln_f.weight.fill_(float("inf"))
    before = transformer.wte.weight.clone()
    run.forward(0)
    with pytest.raises(PeerError, match=r"student 0, stage 1, step 0: .*loss nan, grad_norm nan: not finite"):
        run.backward(0, [])
    assert torch.equal(before, transformer.wte.weight)


def test_learning_lowers_the_loss() -> None:
    tok = small.tokenizer()
    faster = {"variant": "torch", "lr": 5e-3, "eps": 1e-8}
    config = small.experiment(training={"epochs": 12, "batch_size": 4}, optim=faster)
    runs = small.begun(small.peers(config, tok), small.tokens(tok))
    figures = run_steps(runs, range(runs[0].num_steps))
    for peer in range(2):
        assert figures[-1][peer]["loss"] < 0.8 * figures[0][peer]["loss"]


def test_the_reported_tokens_are_those_that_bear_a_loss() -> None:
    tok = small.tokenizer()
    table = small.tokens(tok)
    runs = small.begun(small.peers(small.experiment(), tok, "lamol"), table)
    rows = table.take(runs[0].sampler.indices(0)).to_pylist()
    (figures,) = run_steps(runs, range(1))
    answers = sum(len(row["ids"]) - row["prompt_length"] + 1 for row in rows)
    assert figures[0]["tokens"] == answers + sum(len(row["ids"]) + 1 for row in rows)
    assert figures[0]["samples"] == len(rows)
