"""A step of ``fuse``: one student learns from several frozen peers, on current and replayed examples alike."""

from __future__ import annotations

import copy

import pytest

from ray_l4.learner.learner import Learner
from ray_l4.learner.models import build_model
from ray_l4.learner.stage_run import StageRun
from ray_l4.methods import get_method, taught
from tests.learner import learner_fixtures as small
from tests.learner.plain_objective import Rule, plain_objective

RULE = Rule(weight=1.0, temperature=2.0, examples="all")
WIDTHS = (32, 32, 48, 16, 32)
"""The student, and its teachers, which need not be of its size."""


def begun(teachers: int, **changes: object) -> list[StageRun]:
    """Begin a stage without dropout; every batch holds all examples."""
    tok, learners = small.tokenizer(), []
    for peer, width in enumerate(WIDTHS[: 1 + teachers]):
        shape = {"layers": 1, "width": width, "heads": 2, "positions": 64, "dropout": 0.0}
        sections: dict[str, object] = {
            "model": {"from_scratch": shape},
            "training": {"epochs": 1, "batch_size": 5, "max_grad_norm": 1e9},
            "distillation": {"weight": 1.0, "temperature": 2.0, "examples": "all"},
        }
        config = small.experiment(**sections | changes)
        learners.append(Learner(peer, build_model(config.model, tok, peer), tok, config, get_method("fuse")))
    return small.begun(small.unlike(learners), small.tokens(tok, current=3, replayed=2), stage=0)


@pytest.mark.parametrize("teachers", [2, 3, 4])
def test_loss_and_gradients_are_those_of_a_plain_implementation(teachers: int) -> None:
    runs = begun(teachers)
    recorded = small.record_gradients(runs[0])
    student, *others = (copy.deepcopy(run.learner.model) for run in runs)
    rows = runs[0].tokens.take(runs[0].sampler.indices(0)).to_pylist()
    assert {row["origin"] for row in rows} == {"real", "generated"}
    loss, expected = plain_objective(student, others, rows, runs[0].learner.tokenizer, RULE, ("qa", "lm"))
    loss.backward()
    (figures,) = small.train(runs, {0: range(1)}, taught(1, teachers))
    assert {name: figures[0][name] for name in expected} == pytest.approx(expected, rel=1e-5)
    small.assert_same_gradients(recorded[0], student)


@pytest.mark.parametrize("teachers", [2, 3])
def test_teachers_do_not_change(teachers: int) -> None:
    runs = begun(teachers)
    before = [copy.deepcopy(run.learner.model) for run in runs]
    small.train(runs, {0: range(1)}, taught(1, teachers))
    unchanged = [small.same_weights(run.learner, was) for run, was in zip(runs, map(Holder, before), strict=True)]  # type: ignore[arg-type]
    assert unchanged == [False] + [True] * teachers


class Holder:
    """A model where ``same_weights`` looks for it."""

    def __init__(self, model: object) -> None:
        self.model = model


def test_without_the_replayed_examples_the_gradient_is_another() -> None:
    """The row's setting counts: with ``current``, replayed examples bear labels alone."""
    losses = [
        small.train(begun(2, distillation={"weight": 1.0, "examples": which}), {0: range(1)}, taught(1, 2))[0][0]
        for which in ("all", "current")
    ]
    assert losses[0]["nll_qa"] == losses[1]["nll_qa"]
    assert losses[0]["kd_qa"] != losses[1]["kd_qa"]
