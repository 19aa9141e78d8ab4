"""A run in a thread of this process, watched and stopped from the main thread."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path
from types import FrameType

import pytest

from ray_l4.run.coordinator import Coordinator
from ray_l4.run.session import LocalSession, open_session
from tests.run import run_fixtures as small


@pytest.fixture
def session(tmp_path: Path) -> LocalSession:
    profile = small.cluster("in_process")
    setup, run = small.new_run(small.quick("lamol"), profile, tmp_path / "run")
    opened = open_session(setup, profile, run)
    assert isinstance(opened, LocalSession)
    return opened


def interrupt_in(seconds: float) -> None:
    """Raise KeyboardInterrupt in the main thread after a while, as Ctrl-C does."""

    def on_alarm(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGALRM, on_alarm)
    signal.setitimer(signal.ITIMER_REAL, seconds)


def test_after_an_interruption_the_run_is_still_waited_for(
    session: LocalSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python 3.11 takes a thread for ended whose ``join`` was interrupted. The process then aborted in 2 of 6 cases."""
    ended: list[float] = []

    def work(coordinator: Coordinator) -> None:
        while not coordinator._context.stop.is_set():
            time.sleep(0.01)
        time.sleep(0.3)  # the step under way
        ended.append(time.monotonic())

    monkeypatch.setattr(Coordinator, "run", work)
    session.begin()
    interrupt_in(0.2)
    with pytest.raises(KeyboardInterrupt):
        session.wait(20)
    session.close()
    assert ended and session.wait(0)


def test_a_run_that_does_not_stop_is_waited_for_with_a_limit(
    session: LocalSession, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    released = threading.Event()
    monkeypatch.setattr(session, "_limit", 0.2)
    monkeypatch.setattr(Coordinator, "run", lambda coordinator: released.wait(20))
    session.begin()
    session.close()
    assert "did not stop within 0.2 s" in caplog.text
    released.set()
    assert session.wait(20)


def test_a_session_that_has_not_begun_is_closed_at_once(session: LocalSession) -> None:
    began = time.monotonic()
    session.close()
    assert time.monotonic() - began < 1
