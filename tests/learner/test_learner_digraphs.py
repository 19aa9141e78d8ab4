"""For any topology, the gradient from the mean of the teachers is the mean of the gradients from each teacher."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ray_l4.learner.learner import Learner
from ray_l4.learner.models import build_model
from ray_l4.learner.stage_run import StageRun
from ray_l4.methods import Topology, from_edges, get_method, ring, star
from tests.learner import learner_fixtures as small
from tests.learner.plain_objective import Rule, plain_objective

WEIGHT = 3.0
RULE = Rule(weight=WEIGHT)
WIDTHS = (32, 48, 16, 32)
"""Peers of different sizes."""


def begun(size: int, schedule: str = "simultaneous") -> list[StageRun]:
    """Begin a stage with different peers without dropout; every batch holds all examples."""
    tok = small.tokenizer()
    learners = []
    for peer, width in enumerate(WIDTHS[:size]):
        shape = {"layers": 1, "width": width, "heads": 2, "positions": 64, "dropout": 0.0}
        config = small.experiment(
            model={"from_scratch": shape},
            training={"epochs": 1, "batch_size": 5, "max_grad_norm": 1e9},
            distillation={"weight": WEIGHT, "schedule": schedule},
        )
        learners.append(Learner(peer, build_model(config.model, tok, peer), tok, config, get_method("l4")))
    return small.begun(small.unlike(learners), small.tokens(tok, current=3, replayed=2))


def averaged(model: Any, teachers: list[Any], run: StageRun) -> float:
    """Compute the gradient in ``model`` of the mean, over the teachers, of the objective with each one alone."""
    rows = run.tokens.take(run.sampler.indices(0)).to_pylist()
    losses = [
        plain_objective(model, only, rows, run.learner.tokenizer, RULE, ("qa", "lm"))[0]
        for only in ([[teacher] for teacher in teachers] or [[]])
    ]
    loss = torch.stack(losses).mean()
    loss.backward()
    return loss.item()


@st.composite
def digraphs(draw: st.DrawFn) -> Topology:
    size = draw(st.integers(2, 4))
    pairs = [(i, j) for i in range(size) for j in range(size) if i != j]
    return from_edges(size, sorted(draw(st.sets(st.sampled_from(pairs)))))


def check(graph: Topology, schedule: str, together: bool) -> None:
    runs = begun(graph.size, schedule)
    recorded = [small.record_gradients(run) for run in runs]
    turns = [list(graph.students)] if together else [[peer] for peer in graph.students]
    for turn in turns:
        before = [copy.deepcopy(run.learner.model) for run in runs]
        (figures,) = small.train(runs, dict.fromkeys(turn, range(1)), graph)
        assert figures.keys() == set(turn)
        for peer in turn:
            teachers = [before[teacher] for teacher in graph.teachers_of(peer)]
            loss = averaged(before[peer], teachers, runs[peer])
            small.assert_same_gradients(recorded[peer][0], before[peer], tolerance=3e-5)
            # The values differ by the spread of the teachers, which is 0 for a single one.
            assert figures[peer]["loss"] <= loss + 1e-5
            if len(teachers) < 2:
                assert figures[peer]["loss"] == pytest.approx(loss, rel=1e-5)


@settings(max_examples=6)
@example(ring(4))
@example(star(4))
@example(from_edges(3, [(2, 0)]))
@given(digraphs())
def test_the_gradient_is_the_average_over_the_teachers(graph: Topology) -> None:
    check(graph, "simultaneous", together=True)


@settings(max_examples=2)
@example(ring(3))
@given(digraphs())
def test_the_gradient_is_the_average_when_students_learn_in_turn(graph: Topology) -> None:
    check(graph, "alternate_epochs", together=False)


def test_a_peer_without_teachers_learns_from_labels_only() -> None:
    (figures,) = small.train(begun(2), dict.fromkeys((0, 1), range(1)), from_edges(2, [(0, 1)]))
    assert figures[0]["kd_qa"] == figures[0]["kd_lm"] == 0.0
    assert figures[1]["kd_qa"] > 0
    assert figures[0]["loss"] == pytest.approx(figures[0]["nll_qa"] + 0.25 * figures[0]["nll_lm"], rel=1e-6)


def test_after_a_loss_targets_are_the_mean_over_present_peers() -> None:
    """The mean is not over all teachers with one missing, whose probabilities would not sum to one."""
    (present,) = small.train(begun(3), dict.fromkeys((0, 2), range(1)), ring(3).without({1}))
    assert present[2]["kd_qa"] == 0.0, "its only teacher is gone"
    steps = dict.fromkeys((0, 2, 3), range(1))
    two = small.train(begun(4), steps, star(4).without({1}))
    same = small.train(begun(4), steps, from_edges(4, [(2, 0), (3, 0), (0, 2), (0, 3)]))
    assert two == same and len(two) == 1
