"""How a start of Ray that fails is told: as what a new session may heal, or as what it may not."""

from __future__ import annotations

import os
import threading

import pytest
import ray

from ray_l4.cluster import connection
from ray_l4.config.cluster import ClusterConfig
from ray_l4.errors import ClusterError, SessionLostError


class NoWatchdog:
    """Nothing is started that would have to be watched."""


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (Exception("The current node timed out during startup."), SessionLostError),
        (ConnectionError("no GCS"), SessionLostError),
        (RuntimeError("the raylet has ended"), SessionLostError),
        (ValueError("object_store_memory is too small"), ClusterError),
    ],
)
def test_a_local_ray_that_does_not_start(
    error: Exception, kind: type[ClusterError], monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(**options: object) -> None:
        raise error

    monkeypatch.setattr(connection, "Watchdog", NoWatchdog)
    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(ClusterError, match="cannot use a Ray cluster at this machine") as caught:
        connection.connect(1, ClusterConfig())
    assert type(caught.value) is kind and str(error).rstrip(".") in str(caught.value)


@pytest.mark.parametrize("address", [None, "127.0.0.1:6379"])
def test_a_ray_that_hangs_at_its_start_ends_the_process(address: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing can interrupt Ray's own start; a stopped control store kept it waiting without bound."""
    ended: list[int] = []
    hangs = threading.Event()

    def end(code: int) -> None:
        ended.append(code)
        hangs.set()

    def init(**options: object) -> None:
        assert hangs.wait(20.0)
        raise ConnectionError("the process would have ended by now")

    monkeypatch.setattr(connection, "Watchdog", NoWatchdog)
    monkeypatch.setattr(connection, "check_answers", lambda address: None)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(os, "_exit", end)
    profile = ClusterConfig.model_validate({"ray": {"address": address}, "timeouts": {"start": 0.2}})
    with pytest.raises(ClusterError, match="would have ended"):
        connection.connect(1, profile)
    assert ended == [6]
