"""Students with batches of their own: codistillation, compared with plain models; examples of their own."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_l4.learner.stage_run import StageRun
from ray_l4.methods import ring
from tests.learner import learner_fixtures as small
from tests.learner.plain_objective import Rule, plain_objective

SHAPE = {"layers": 1, "width": 32, "heads": 2, "positions": 64, "dropout": 0.0}
WEIGHT = 3.0


def config(batches: str = "own", subset: float = 1.0, **more: Any) -> Any:
    sections: dict[str, Any] = {
        "model": {"from_scratch": SHAPE},
        "training": {"epochs": 2, "batch_size": 4, "max_grad_norm": 1e9},
        "distillation": {"weight": WEIGHT, "batches": batches},
        "peers": {"subset": subset},
    }
    return small.experiment(**sections | more)


def begun(count: int = 2, current: int = 8, replayed: int = 3, **settings: Any) -> list[StageRun]:
    tok = small.tokenizer()
    learners = small.unlike(small.peers(config(**settings), tok, "l4", count))
    return small.begun(learners, small.tokens(tok, current=current, replayed=replayed))


def orders(runs: list[StageRun]) -> list[list[int]]:
    """Every student's rows in the order in which it learns them."""
    return [[int(row) for step in range(run.num_steps) for row in run.sampler.indices(step)] for run in runs]


@pytest.mark.parametrize("replayed", [0, 3])
def test_gradients_equal_those_of_plain_models_on_batches_of_their_own(replayed: int) -> None:
    runs = begun(3, replayed=replayed)
    recorded = [small.record_gradients(run) for run in runs]
    for step in range(3):
        before = [copy.deepcopy(run.learner.model) for run in runs]
        (figures,) = small.train(runs, dict.fromkeys(range(3), range(step, step + 1)), ring(3))
        for peer, run in enumerate(runs):
            rows = run.tokens.take(run.sampler.indices(step)).to_pylist()
            teacher = before[(peer - 1) % 3]
            loss, expected = plain_objective(
                before[peer], [teacher], rows, run.learner.tokenizer, Rule(weight=WEIGHT), ("qa", "lm")
            )
            loss.backward()
            for name, value in expected.items():
                assert figures[peer][name] == pytest.approx(value, rel=1e-5, abs=1e-6), name
            small.assert_same_gradients(recorded[peer][step], before[peer])


def test_peers_that_begin_equal_differ_after_a_step() -> None:
    shared, own = begun(batches="shared"), begun()
    for runs in (shared, own):
        assert small.same_weights(runs[0].learner, runs[1].learner)
        small.train(runs, dict.fromkeys((0, 1), range(2)))
    assert small.same_weights(shared[0].learner, shared[1].learner)
    assert not small.same_weights(own[0].learner, own[1].learner)


def test_student_0_learns_in_the_order_of_a_student_alone_and_the_others_in_their_own() -> None:
    common, *_ = orders(begun(batches="shared"))
    first, second, third = orders(begun(3))
    assert first == common
    assert sorted(first) == sorted(second) == sorted(third)
    assert first != second != third != first


def test_every_teacher_is_asked_for_the_batch_of_the_student() -> None:
    """A teacher that predicts its own batch has other positions, which a student refuses or learns wrongly from."""
    mine, other = begun()
    mine.forward(0, publish=False)
    given = other.predict(0, 0)
    asked = mine._steps.asked(0, 0).micro_batches[0].batch.heads.values()
    assert given.num_logits == sum(own.num_distilled for own in asked) * small.tokenizer().size
    figures = mine.backward(0, [given.targets()])
    assert figures["kd_qa"] == pytest.approx(0.0, abs=1e-6), "they are still equal"


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(0, 4), st.floats(0.05, 0.99), st.integers(0, 3))
def test_a_subset_has_its_share_of_the_current_examples_and_all_others(
    current: int, replayed: int, share: float, student: int
) -> None:
    tok = small.tokenizer()
    learner = small.peers(config(subset=share), tok, "l4", 2)[0]
    learner.peer = student
    run = learner.begin_stage(1, small.tokens(tok, current=current, replayed=replayed))
    (order,) = orders([run])
    epochs = np.array_split(np.asarray(order), 2)
    for epoch in epochs:
        assert len(set(epoch)) == len(epoch), "no example twice"
        assert sum(row < current for row in epoch) == max(1, round(share * current))
        assert sum(row >= current for row in epoch) == replayed
    assert set(epochs[0]) == set(epochs[1]), "the same ones in every epoch"


def test_subsets_differ_between_students_and_stages() -> None:
    of_students = [set(order) for order in orders(begun(3, current=12, subset=0.5))]
    assert of_students[0] != of_students[1] != of_students[2] != of_students[0]
    tok = small.tokenizer()
    learner = small.peers(config(subset=0.5), tok)[0]
    table = small.tokens(tok, current=12)
    stages = [set(orders([learner.begin_stage(stage, table)])[0]) for stage in (0, 1)]
    assert stages[0] != stages[1]


def test_the_learning_rate_follows_the_examples_that_a_student_has() -> None:
    whole, half = begun(current=8, replayed=0)[0], begun(current=8, replayed=0, subset=0.5)[0]
    assert (whole.num_steps, half.num_steps) == (4, 2)
    assert half.rate(0) == pytest.approx(whole.rate(0))
    assert half.rate(1) == pytest.approx(whole.rate(2)), "half of the way through"
