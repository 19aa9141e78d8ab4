"""The state of a stage under way, as bytes: a stage that continues from it ends as if nothing had happened."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_l4.errors import ModelError, PeerError
from ray_l4.learner import stage_state
from tests.learner.test_learner_stage_run import (
    NUM_STEPS,
    OPTIMIZERS,
    begun,
    learn,
    learners,
    prepared,
    undisturbed,
    weights,
)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("method", ["l4", "ewc"])
@settings(max_examples=5)
@given(done=st.integers(0, NUM_STEPS))
def test_a_stage_continued_from_its_bytes_ends_with_the_same_weights(method: str, optimizer: str, done: int) -> None:
    expected = undisturbed(method, optimizer)
    first = prepared(method, optimizer)
    before = learn(first, range(done))
    kept = [stage_state.to_bytes(run) for run in first]
    learn(first, range(done, min(done + 1, NUM_STEPS)))  # learning on must not change what was saved
    second = prepared(method, optimizer)
    learn(second, range(1))  # will be overwritten
    for run, state in zip(second, kept, strict=True):
        stage_state.restore(run, state)
        assert run.next_step == done
    assert before + learn(second, range(done, NUM_STEPS)) == expected.figures
    assert weights(second) == expected.weights


def test_a_step_under_way_is_repeated_from_a_state() -> None:
    run, again = (begun(learners("lamol"))[0] for _ in range(2))
    run.forward(0)
    run.backward(0, [])
    run.forward(1)
    state = stage_state.to_bytes(run)
    figures = run.backward(1, [])
    stage_state.restore(again, state)
    assert again.next_step == 1
    again.forward(1)
    assert again.backward(1, []) == figures
    assert weights([again]) == weights([run])


@given(cut=st.integers(0, 400))
@settings(max_examples=20)
def test_a_damaged_state_is_refused_and_changes_nothing(cut: int) -> None:
    (run,) = begun(learners("lamol"))
    learn([run], range(2))
    before, state = weights([run]), stage_state.to_bytes(run)
    with pytest.raises(ModelError, match="damaged"):
        stage_state.restore(run, state[:cut])
    assert run.next_step == 2 and weights([run]) == before


def test_the_state_of_another_model_or_stage_is_refused() -> None:
    (run,) = begun(learners("lamol"))
    state = stage_state.to_bytes(run)
    run.stage += 1
    with pytest.raises(PeerError, match="the saved state is of stage"):
        stage_state.restore(run, state)
    run.stage -= 1
    first = next(own for own in run.learner.model.parameters())
    first.requires_grad_(False)
    with pytest.raises(ModelError, match="does not fit"):
        stage_state.restore(run, np.array(state))
