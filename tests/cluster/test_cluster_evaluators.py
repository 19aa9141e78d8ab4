"""Evaluators at their start."""

from __future__ import annotations

import pytest

from ray_l4.cluster.evaluators import MOST_DEATHS, Evaluators
from ray_l4.cluster.handles import EvaluatorHandle
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
