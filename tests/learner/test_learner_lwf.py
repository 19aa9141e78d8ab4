"""Learning without forgetting: the model before the task is the teacher, on the answer head only."""

from __future__ import annotations

import copy

import pytest
import torch

from ray_l4.learner.models import load_bytes
from ray_l4.methods import resolved
from tests.learner import learner_fixtures as small
from tests.learner.plain_objective import Rule, plain_objective

SHAPE = {"layers": 1, "width": 32, "heads": 2, "positions": 64, "dropout": 0.0}


def test_the_previous_model_is_the_teacher_on_the_new_task() -> None:
    tok = small.tokenizer()
    config = resolved(
        small.experiment(method="lwf", model={"from_scratch": SHAPE}, training={"batch_size": 4, "max_grad_norm": 1e9})
    )
    student, teacher = small.unlike(small.peers(config, tok, "lwf"))
    alone = student.begin_stage(0, small.tokens(tok, current=4, replayed=0))
    for step in range(2):  # the first task has no teacher
        alone.forward(step, publish=False)
        assert alone.backward(step, [])["kd_qa"] == 0.0

    load_bytes(teacher.model, student.weights())
    previous = copy.deepcopy(teacher.model)
    table = small.tokens(tok, current=6, replayed=0)
    runs = small.begun((student, teacher), table)
    first, second = small.train(runs, {0: range(2)})
    assert first[0]["kd_qa"] == pytest.approx(0.0, abs=1e-6), "nothing has changed yet"
    assert second[0]["kd_qa"] > 1e-4
    assert "kd_lm" not in second[0]

    # Compare the next step with the plain objective: labels everywhere, and the previous model with equal weight.
    plain, rows = copy.deepcopy(student.model), table.take(runs[0].sampler.indices(2)).to_pylist()
    gradients = small.record_gradients(runs[0])
    (figures,) = small.train(runs, {0: range(2, 3)})
    loss, expected = plain_objective(plain, [previous], rows, tok, Rule(weight=1.0), ("qa",))
    loss.backward()
    assert figures[0]["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert figures[0]["kd_qa"] == pytest.approx(expected["kd_qa"], rel=1e-4)
    small.assert_same_gradients(gradients[0], plain)
    unchanged = zip(previous.parameters(), teacher.model.parameters(), strict=True)
    assert all(torch.equal(before, after) for before, after in unchanged)
