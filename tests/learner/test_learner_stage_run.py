"""Stage runs: saving and restoring their state bit for bit, dropping steps, and beginning stages anew."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_l4.errors import PeerError
from ray_l4.learner.learner import Learner
from ray_l4.learner.stage_run import StageRun
from ray_l4.run.step_loop import StepFigures
from tests.learner import guard_fixtures
from tests.learner import learner_fixtures as small

CPU = torch.device("cpu")
STAGE, NUM_STEPS = 2, 6
"""Number of steps in two epochs of eleven examples, four per step."""
OPTIMIZERS: Mapping[str, dict[str, Any]] = {
    "torch": {"variant": "torch", "lr": 1e-2, "eps": 1e-8, "warmup": 0.4},
    "reference": {"variant": "reference", "lr": 1e-2, "warmup": 0.4},
}
OF_A_STAGE = ("stage", "tokens", "memory", "sampler", "optimizer", "next_step", "num_steps", "_under_way")


def saved_by_torch(state: dict[str, Any]) -> dict[str, Any]:
    """Write a state to a file and read it back, as plain data."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


COPIES: Mapping[str, Callable[[dict[str, Any]], dict[str, Any]]] = {"copied": copy.deepcopy, "saved": saved_by_torch}


def learners(method: str, optimizer: str = "torch", micro_batch: int | None = None) -> list[Learner]:
    """Build the peers of a method, with dropout and different predictions."""
    config = small.experiment(
        optim=OPTIMIZERS[optimizer], peers={"init": "own"}, regulariser={"weight": guard_fixtures.STRENGTH}
    )
    peers = list(small.unlike(small.peers(config, small.tokenizer(), method)))
    for learner in peers:
        learner.micro_batch = micro_batch
    return peers


def begun(peers: list[Learner], stage: int = STAGE) -> list[StageRun]:
    return small.begun(peers, small.tokens(small.tokenizer()), stage)


def learn(runs: list[StageRun], steps: range) -> list[StepFigures]:
    return small.train(runs, dict.fromkeys(range(len(runs)), steps))


def weights(runs: list[StageRun]) -> list[bytes]:
    return [run.learner.weights().tobytes() for run in runs]


@cache
def knowledge(optimizer: str) -> np.ndarray:
    """Return the state of EWC's guard after a first stage, as bytes."""
    (learner,) = learners("ewc", optimizer)
    learner.begin_stage(1, guard_fixtures.table("a", 6)).consolidate()
    assert learner.guard is not None
    known = learner.guard.to_bytes()
    assert known is not None
    return known


def prepared(method: str, optimizer: str) -> list[StageRun]:
    """Begin the stage with new learners; a guard has the state of an earlier stage."""
    peers = learners(method, optimizer)
    for learner in peers:
        if learner.guard is not None:
            learner.guard.restore(knowledge(optimizer), CPU)
    return begun(peers)


@dataclass(frozen=True)
class Ended:
    """The result of a whole stage."""

    figures: list[StepFigures]
    weights: list[bytes]


@cache
def undisturbed(method: str, optimizer: str) -> Ended:
    """Learn the whole stage without interruption."""
    runs = prepared(method, optimizer)
    figures = learn(runs, range(NUM_STEPS))
    return Ended(figures, weights(runs))


# --- saved and restored


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("method", ["l4", "ewc"])
@settings(max_examples=7)
@given(done=st.integers(0, NUM_STEPS), how=st.sampled_from(sorted(COPIES)))
def test_a_restored_stage_ends_with_the_same_weights(method: str, optimizer: str, done: int, how: str) -> None:
    expected = undisturbed(method, optimizer)
    first = prepared(method, optimizer)
    before = learn(first, range(done))
    kept = [(run.learner.weights().copy(), COPIES[how](run.state_dict())) for run in first]
    learn(first, range(done, min(done + 1, NUM_STEPS)))  # learning on must not change what was saved
    torch.rand(100)

    second = prepared(method, optimizer)
    learn(second, range(1))  # will be overwritten
    for run, (own, state) in zip(second, kept, strict=True):
        assert (state["stage"], state["next_step"]) == (STAGE, done)
        run.learner.load(own)
        run.load_state_dict(state)
        assert run.next_step == done
    after = learn(second, range(done, NUM_STEPS))
    assert before + after == expected.figures
    assert weights(second) == expected.weights


@pytest.mark.parametrize("method", ["l4", "ewc"])
def test_the_stages_compared_are_not_trivial(method: str) -> None:
    expected = undisturbed(method, "torch")
    assert len(expected.figures) == NUM_STEPS
    assert len({figures[0]["lr"] for figures in expected.figures}) == NUM_STEPS, "the rate depends on the step"
    assert expected.weights != weights(prepared(method, "torch")) and len(set(expected.weights)) == len(
        expected.weights
    )
    of_method = {"l4": "kd_qa", "ewc": "penalty"}[method]
    assert sum(figures[0][of_method] > 0 for figures in expected.figures) >= 4


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_without_the_saved_state_the_weights_differ(optimizer: str) -> None:
    """Otherwise the test above would pass even if the state were ignored."""
    first, second = prepared("l4", optimizer), prepared("l4", optimizer)
    learn(first, range(3))
    for run, other in zip(first, second, strict=True):
        other.learner.load(run.learner.weights())
        other.load_state_dict({**other.state_dict(), "next_step": 3})  # only the position
    learn(second, range(3, NUM_STEPS))
    assert weights(second) != undisturbed("l4", optimizer).weights


@pytest.mark.parametrize("micro_batch", [None, 2])
def test_a_step_under_way_is_not_part_of_the_state(micro_batch: int | None) -> None:
    """A student begins the next step in the call that learns one, so a state is taken in between."""
    run, restored = (begun(learners("lamol", micro_batch=micro_batch))[0] for _ in range(2))
    run.forward(0)
    assert run.state_dict()["next_step"] == 0
    run.backward(0, [])
    run.forward(1)
    state, between = copy.deepcopy(run.state_dict()), run.learner.weights().copy()
    assert state["next_step"] == 1
    figures = run.backward(1, [])
    restored.learner.load(between)
    restored.load_state_dict(state)
    restored.forward(1)
    assert restored.backward(1, []) == figures
    assert (restored.learner.weights() == run.learner.weights()).all()


@pytest.mark.parametrize(("stage", "next_step"), [(1, 0), (3, 2), (STAGE, -1), (STAGE, NUM_STEPS + 1)])
def test_a_state_of_another_stage_or_of_an_impossible_step_is_refused(stage: int, next_step: int) -> None:
    """The stage run is unchanged, and can finish its step."""
    calm, run = (begun(learners("lamol"))[0] for _ in range(2))
    for own in (calm, run):
        learn([own], range(2))
    state = copy.deepcopy(run.state_dict())
    for own in (calm, run):
        own.forward(2)
    message = (
        rf"student 0, stage 2: the saved state is of stage {stage}, step {next_step}; expected stage 2 and a step "
        rf"from 0 to {NUM_STEPS}$"
    )
    with pytest.raises(PeerError, match=message):
        run.load_state_dict({**state, "stage": stage, "next_step": next_step})
    assert run.next_step == 2
    assert run.backward(2, []) == calm.backward(2, [])
    assert learn([run], range(3, NUM_STEPS)) == learn([calm], range(3, NUM_STEPS))
    assert weights([run]) == weights([calm])


def test_restoring_a_state_drops_the_step_under_way() -> None:
    (run,) = prepared("ewc", "torch")
    kept, state = run.learner.weights().copy(), copy.deepcopy(run.state_dict())
    learn([run], range(2))
    run.forward(2)
    run.learner.load(kept)
    run.load_state_dict(state)
    assert run.next_step == 0
    expected = undisturbed("ewc", "torch")
    assert learn([run], range(NUM_STEPS)) == expected.figures
    assert weights([run]) == expected.weights


# --- dropped steps and new stages


@pytest.mark.parametrize("micro_batch", [None, 2])
def test_an_abandoned_step_has_no_effect(micro_batch: int | None) -> None:
    calm, disturbed = (begun(learners("lamol", micro_batch=micro_batch))[0] for _ in range(2))
    assert disturbed.abandon() == 0
    for step in range(NUM_STEPS):
        first = disturbed.forward(step)
        kept = {head: logits.clone() for head, logits in first.logits.items()}
        assert disturbed.abandon() == disturbed.next_step == step
        with pytest.raises(PeerError, match="backward was called before forward"):
            disturbed.backward(step, [])
        assert all(parameter.grad is None for parameter in disturbed.learner.model.parameters())
        again = disturbed.forward(step)
        assert all(torch.equal(again.logits[head], logits) for head, logits in kept.items())
        calm.forward(step)
        assert disturbed.backward(step, []) == calm.backward(step, [])
    assert disturbed.abandon() == NUM_STEPS
    assert weights([disturbed]) == weights([calm])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_stage_begins_with_a_fresh_optimiser(optimizer: str) -> None:
    peers = learners("l4", optimizer)
    first = begun(peers)
    assert [run.next_step for run in first] == [0, 0]
    learn(first, range(3))
    first[0].forward(3)  # a step that is never finished
    second = begun(peers, stage=STAGE + 1)
    for before, after in zip(first, second, strict=True):
        assert after is not before and after.optimizer is not before.optimizer
        assert before.optimizer.state and not after.optimizer.state
        assert (after.stage, after.next_step, after.num_steps) == (STAGE + 1, 0, NUM_STEPS)
        assert all(parameter.grad is None for parameter in after.learner.model.parameters())
        assert after.learner is before.learner
    fresh = learners("l4", optimizer)
    for learner, run in zip(fresh, second, strict=True):
        learner.load(run.learner.weights())
    third = begun(fresh, stage=STAGE + 1)
    assert learn(second, range(NUM_STEPS)) == learn(third, range(NUM_STEPS))
    assert weights(second) == weights(third)


def test_a_learner_has_no_attributes_of_a_stage() -> None:
    learner = learners("ewc")[0]
    attributes = set(vars(learner))
    begun([learner])[0].forward(0)
    assert set(vars(learner)) == attributes, "a stage leaves nothing in the learner"
    assert not [name for name in (*OF_A_STAGE, "forward", "backward", "abandon") if hasattr(learner, name)]


def test_a_stage_run_describes_its_stage() -> None:
    table, memory = small.tokens(small.tokenizer()), guard_fixtures.table("a", 3)
    learner = learners("agem")[0]
    run = learner.begin_stage(STAGE, table, memory)
    assert all(hasattr(run, name) for name in OF_A_STAGE)
    assert (run.stage, run.num_steps, run.next_step) == (STAGE, NUM_STEPS, 0)
    assert run.learner is learner and run.tokens is table and run.memory is memory
    assert run.sampler.num_steps == NUM_STEPS
    assert begun([learner])[0].memory is None


def test_predicting_does_not_advance_the_stage() -> None:
    (run,) = begun(learners("lamol"))
    for step in range(2):
        run.predict(4, 0)
        run.forward(step)
        run.predict(0, 0)
        run.backward(step, [])
        assert run.next_step == step + 1
