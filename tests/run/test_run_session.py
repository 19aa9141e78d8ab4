"""A run in a thread of this process, watched and stopped from the main thread."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path
from types import FrameType

import pytest

from ray_l4.errors import SessionLostError
from ray_l4.run import session as session_module
from ray_l4.run.coordinator import Coordinator
from ray_l4.run.session import LocalSession, RaySession, open_session
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


def test_a_ray_that_hangs_while_it_starts_ends_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing can interrupt Ray's own start; a stopped control store kept it waiting without bound."""
    profile = small.cluster("object_store", timeouts={"start": 0.2})
    setup, run = small.new_run(small.quick("lamol"), profile, tmp_path / "run")
    opened = open_session(setup, profile, run)
    assert isinstance(opened, RaySession)
    ended: list[SessionLostError] = []
    hangs = threading.Event()

    def end(loss: SessionLostError) -> None:
        ended.append(loss)
        hangs.set()

    def connect(*given: object) -> None:
        assert hangs.wait(20.0)
        raise loss_of_the_test

    loss_of_the_test = SessionLostError("the process would have ended by now")
    monkeypatch.setattr(session_module.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(session_module, "connect", connect)
    monkeypatch.setattr(opened, "_end_process", end)
    with pytest.raises(SessionLostError, match="would have ended"):
        opened.begin()
    assert [str(loss) for loss in ended] == ["ray: it has not started within 0.2 s (timeouts.start)"]
