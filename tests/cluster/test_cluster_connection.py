"""How a start of Ray that fails is told: as what a new session may heal, or as what it may not."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest
import ray

from ray_l4.cluster import connection
from ray_l4.config.cluster import ClusterConfig
from ray_l4.errors import ClusterError, SessionLostError


class NoWatchdog:
    """Nothing is started that would have to be watched."""


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Without what a real start changes in this process: its token is that of the Ray that the tests share."""
    monkeypatch.setattr(connection, "Watchdog", NoWatchdog)
    monkeypatch.setattr(connection, "draw_token", lambda: None)
    return monkeypatch


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
    error: Exception, kind: type[ClusterError], stand_in: pytest.MonkeyPatch
) -> None:
    def init(**options: object) -> None:
        raise error

    stand_in.setattr(ray, "init", init)
    with pytest.raises(ClusterError, match="cannot use a Ray cluster at this machine") as caught:
        connection.connect(1, ClusterConfig())
    assert type(caught.value) is kind and str(error).rstrip(".") in str(caught.value)


@pytest.mark.parametrize("address", [None, "127.0.0.1:6379"])
def test_a_ray_that_hangs_at_its_start_ends_the_process(address: str | None, stand_in: pytest.MonkeyPatch) -> None:
    """Nothing can interrupt Ray's own start; a stopped control store kept it waiting without bound."""
    ended: list[int] = []
    hangs = threading.Event()

    def end(code: int) -> None:
        ended.append(code)
        hangs.set()

    def init(**options: object) -> None:
        assert hangs.wait(20.0)
        raise ConnectionError("the process would have ended by now")

    stand_in.setattr(connection, "check_answers", lambda address: None)
    stand_in.setattr(ray, "init", init)
    stand_in.setattr(os, "_exit", end)
    profile = ClusterConfig.model_validate({"ray": {"address": address}, "timeouts": {"start": 0.2}})
    with pytest.raises(ClusterError, match="would have ended"):
        connection.connect(1, profile)
    assert ended == [6]


LOCAL_RAY = """
import os, signal, time
from ray_l4.cluster.connection import connect, dead_process, own_node_is_alive
from ray_l4.config.cluster import ClusterConfig
import ray
assert dead_process() is None, "there is no Ray"
profile = {"ray": {"num_cpus": 1, "object_store_memory": 80_000_000}, "timeouts": {"control": 4}}
connect(1, ClusterConfig.model_validate(profile))
assert dead_process() is None and own_node_is_alive()
processes = ray._private.worker._global_node.all_processes
"""
STOPPED_RAYLET = """
began = time.monotonic()
os.kill(processes["raylet"][0].process.pid, signal.SIGSTOP)
while own_node_is_alive() and time.monotonic() < began + 30.0:
    time.sleep(0.1)
print(time.monotonic() - began, flush=True)
os.kill(processes["raylet"][0].process.pid, signal.SIGKILL)
os._exit(0)
"""
DEAD_GCS = """
os.kill(processes["gcs_server"][0].process.pid, signal.SIGKILL)
deadline = time.monotonic() + 5.0
while (dead := dead_process()) is None and time.monotonic() < deadline:
    time.sleep(0.05)
print(dead, flush=True)
os._exit(0)
"""


def printed(what_happens: str) -> str:
    """The last word that a process prints which starts a local Ray, to which something happens."""
    words = [sys.executable, "-c", LOCAL_RAY + what_happens]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert ended.stdout.split(), ended.stderr
    return ended.stdout.split()[-1]


@pytest.mark.ray
@pytest.mark.processes
def test_the_death_of_a_local_gcs_is_seen_without_asking_it() -> None:
    """With the real Ray: the table of processes that is asked is not part of its public interface."""
    assert printed(DEAD_GCS) == "gcs_server"


@pytest.mark.ray
@pytest.mark.processes
def test_a_local_raylet_that_hangs_is_given_up_within_the_time_of_a_process() -> None:
    """Ray's own patience is a minute, however short ``timeouts.control`` is."""
    assert 1.0 < float(printed(STOPPED_RAYLET)) < 15.0
