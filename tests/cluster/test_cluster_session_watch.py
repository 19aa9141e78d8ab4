"""A Ray session that has died, or that hangs, is noticed; one that is slow or away for a moment is not given up."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from ray_l4.cluster.session_watch import SessionWatch
from ray_l4.errors import SessionLostError


def watch(is_alive: Callable[[], bool], grace: float = 0.0) -> SessionWatch:
    return SessionWatch(0.3, lambda loss: None, is_alive, interval=0.01, grace=grace)


def loss_within(watched: SessionWatch, seconds: float) -> SessionLostError | None:
    deadline = time.monotonic() + seconds
    while (loss := watched.loss()) is None and time.monotonic() < deadline:
        time.sleep(0.01)
    watched.close()
    return loss


def test_a_node_that_is_gone_is_noticed_at_once() -> None:
    began = time.monotonic()
    loss = loss_within(watch(lambda: False), 10.0)
    assert loss is not None and "raylet" in str(loss)
    assert time.monotonic() - began < 0.3


def test_a_process_of_a_local_ray_that_died_is_noticed_although_every_question_waits() -> None:
    forever, dead = threading.Event(), ["gcs_server"]
    watched = SessionWatch(30.0, lambda loss: None, forever.wait, lambda: dead[0], interval=0.01)
    loss = loss_within(watched, 10.0)
    dead.clear()
    forever.set()
    assert str(loss) == "ray: the gcs_server of this machine has died"


def test_a_control_store_that_hangs_is_noticed_although_no_call_to_it_ever_ends() -> None:
    forever = threading.Event()
    loss = loss_within(watch(forever.wait), 10.0)
    forever.set()
    assert loss is not None and "timeouts.control" in str(loss) and "does not answer" in str(loss)


def test_the_loss_says_why_there_was_no_answer() -> None:
    def fails() -> bool:
        raise SessionLostError("ray: connection refused")

    assert "connection refused" in str(loss_within(watch(fails), 10.0))


@pytest.mark.parametrize("pause", [0.0, 0.1])
def test_a_session_that_answers_now_and_then_is_not_lost(pause: float) -> None:
    calls = 0

    def is_alive() -> bool:
        nonlocal calls
        calls += 1
        time.sleep(pause)
        if calls % 2:
            raise SessionLostError("ray: away")
        return True

    assert loss_within(watch(is_alive), 0.9) is None
    assert calls > 3


def test_a_process_that_stood_still_itself_asks_again_before_it_gives_up() -> None:
    """As after Ctrl-Z and fg: no answer for longer than the limit, because nobody asked."""
    asked = threading.Event()
    watched = SessionWatch(0.1, lambda loss: None, lambda: asked.wait() or True, interval=0.01, grace=5.0)
    time.sleep(0.3)
    assert watched.loss() is None
    asked.set()
    time.sleep(0.1)
    assert watched.loss() is None
    watched.close()


@pytest.mark.parametrize("heeded", [True, False])
def test_a_loss_that_nobody_asks_for_is_told_to_whoever_can_end_the_process(heeded: bool) -> None:
    """The main thread may be in a call to a raylet that is stopped: no time limit of Ray ends it."""
    told: list[SessionLostError] = []
    watched = SessionWatch(0.3, told.append, lambda: False, interval=0.1)
    deadline = time.monotonic() + (1.5 if heeded else 20.0)
    while not told and time.monotonic() < deadline:
        time.sleep(0.02)
        if heeded:
            watched.loss()
    assert len(told) == (0 if heeded else 1)
    watched.close()


def test_a_watch_that_is_closed_tells_nobody() -> None:
    told: list[SessionLostError] = []
    watched = SessionWatch(0.1, told.append, lambda: True, interval=0.02, grace=0.0)
    watched.close()
    time.sleep(0.6)
    assert told == []
