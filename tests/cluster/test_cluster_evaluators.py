"""Evaluators at their start, and how a pulse is read, with a store and a clock of the test's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ray_l4.cluster import pulses
from ray_l4.cluster.evaluators import MOST_DEATHS, Evaluators
from ray_l4.cluster.handles import EvaluatorHandle
from ray_l4.cluster.pulses import Pulse
from ray_l4.cluster.rpc import LocalRpc
from ray_l4.errors import ModelError, PeerError, PeerLostError, RayL4Error


class Starting:
    """An evaluator that is ready, or raises an error when asked."""

    def __init__(self, error: RayL4Error | None = None) -> None:
        self.error = error

    def ready(self) -> None:
        if self.error is not None:
            raise self.error


def crew(errors: list[RayL4Error | None]) -> tuple[Evaluators, list[int]]:
    """One evaluator; each time it is started it meets the next of ``errors``. Returns the starts so far, too."""
    starts: list[int] = []

    def start(index: int) -> EvaluatorHandle:
        starts.append(index)
        return EvaluatorHandle(LocalRpc(), Starting(errors[len(starts) - 1]))

    return Evaluators([start(0)], start), starts


@pytest.mark.parametrize("deaths", range(MOST_DEATHS))
def test_one_that_dies_at_its_start_is_started_again(deaths: int) -> None:
    evaluators, starts = crew([*[PeerLostError("its process died")] * deaths, None])
    evaluators.await_start(7.0)
    assert len(starts) == deaths + 1


def test_one_that_dies_at_every_start_ends_the_run_with_the_cause() -> None:
    evaluators, starts = crew([PeerLostError("its process died")] * MOST_DEATHS)
    with pytest.raises(PeerError, match="its process died; it was started 3 times"):
        evaluators.await_start(7.0)
    assert len(starts) == MOST_DEATHS


def test_an_error_that_another_start_would_meet_again_is_raised_at_once() -> None:
    evaluators, starts = crew([ModelError("no such model")])
    with pytest.raises(ModelError, match="no such model"):
        evaluators.await_start(7.0)
    assert len(starts) == 1


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    state: dict[str, Any] = {"now": 100.0, "value": None, "reads": 0}

    def read(pulse: Pulse) -> bytes | None:
        state["reads"] += 1
        return state["value"]  # type: ignore[no-any-return]

    clock: Callable[[], float] = lambda: state["now"]  # noqa: E731
    monkeypatch.setattr(pulses.time, "monotonic", clock)
    monkeypatch.setattr(Pulse, "_read", read)
    return state


def test_a_pulse_that_stands_still_for_the_limit_is_that_of_a_process_that_hangs(world: dict[str, Any]) -> None:
    pulse = Pulse("evaluator-0", 60)
    world["value"] = b"1 answer"
    assert not pulse.hangs()
    world["now"] += 59
    assert not pulse.hangs()
    world["now"] += 6
    assert pulse.hangs() and pulse.doing == "answer"
    world["value"] = b"2 score"
    world["now"] += 6
    assert not pulse.hangs() and pulse.doing == "score", "it was only slow"


def test_a_watcher_that_was_away_for_long_does_not_take_the_living_for_dead(world: dict[str, Any]) -> None:
    pulse = Pulse("evaluator-0", 60)
    for beat in range(5):
        world["value"] = b"%d answer" % beat
        assert not pulse.hangs()
        world["now"] += 1000


def test_a_process_that_has_not_begun_to_beat_does_not_hang(world: dict[str, Any]) -> None:
    pulse = Pulse("evaluator-0", 60)
    pulse.hangs()
    world["now"] += 1000
    assert not pulse.hangs()


def test_the_store_is_asked_once_per_interval_however_often_one_looks(world: dict[str, Any]) -> None:
    pulse = Pulse("evaluator-0", 60)
    for _ in range(100):
        pulse.hangs()
    assert world["reads"] == 1
