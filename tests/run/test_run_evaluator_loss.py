"""Evaluators that die or are stopped are replaced, and the scores are those of the undisturbed run."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from ray_l4.run.session import start
from tests.run import run_fixtures as small
from tests.run.test_run_faults import actor_processes

pytestmark = pytest.mark.slow

KILLS = 5
"""More than the three restarts that Ray was once asked for."""


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + small.LIMIT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_evaluators_may_die_and_stop_as_often_as_they_like_while_scores_come_in(
    tmp_path: Path, ray_cluster: None
) -> None:
    config = small.long_enough(evaluation={"when": "epoch", "limit": 4, "chunk": 1})
    expected, _ = small.complete_run(config, small.cluster("in_process"), tmp_path / "expected")
    profile = small.cluster("object_store", timeouts={"control": 4})
    setup, run = small.new_run(config, profile, tmp_path / "run")
    others = set(actor_processes("Evaluator"))
    session = start(setup, profile, run)
    struck: list[int] = []
    for number in [signal.SIGKILL] * KILLS + [signal.SIGSTOP]:
        scores = len(list(run.scores()))
        until(lambda scores=scores: len(list(run.scores())) > scores)  # type: ignore[misc]
        until(lambda: len(_alive(others, struck)) == 1)  # a score may come in before the next evaluator is there
        (victim,) = _alive(others, struck)
        os.kill(victim, number)
        struck.append(victim)
    summary = small.finish(session)
    small.assert_equal(run, expected)
    assert summary["restarts"] == 0, "no student had to learn anything again"
    log = (run.path / "logs" / "coordinator.log").read_text()
    assert log.count("evaluator 0 is replaced") == KILLS + 1
    assert "no sign of life for 4 s (timeouts.control)" in log
    until(lambda: not any(Path(f"/proc/{process}").exists() for process in struck))


def _alive(others: set[int], struck: Sequence[int]) -> set[int]:
    """Return the evaluators of this test that were not struck."""
    return set(actor_processes("Evaluator")) - others - set(struck)
