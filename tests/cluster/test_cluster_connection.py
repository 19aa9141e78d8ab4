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


class StandInRay:
    """Whether this process is connected, and how often it connected and left."""

    def __init__(self, stand_in: pytest.MonkeyPatch, *, connected: bool, error: Exception | None = None) -> None:
        self.connected, self.error = connected, error
        self.calls: list[str] = []
        self.may_connect = threading.Event()
        stand_in.setattr(ray, "is_initialized", lambda: self.connected)
        stand_in.setattr(ray, "shutdown", self.shutdown)
        stand_in.setattr(connection, "connect", self.connect)

    def connect(self, peers: int, cluster: ClusterConfig) -> None:
        assert self.may_connect.wait(10.0)
        self.calls.append(f"connect {peers}")
        if self.error is not None:
            raise self.error
        self.connected = True

    def shutdown(self) -> None:
        self.calls.append("shutdown")
        self.connected = False


def test_a_connection_is_made_in_the_background_and_closed_once(stand_in: pytest.MonkeyPatch) -> None:
    there = StandInRay(stand_in, connected=False)
    made = connection.Connection(2, ClusterConfig())
    made.begin()
    assert there.calls == []  # the caller goes on meanwhile
    there.may_connect.set()
    made.wait()
    assert there.calls == ["connect 2"]
    made.close()
    made.close()
    assert there.calls == ["connect 2", "shutdown"]


def test_a_connection_that_is_not_wanted_any_more_is_closed_once_it_is_there(stand_in: pytest.MonkeyPatch) -> None:
    """The data was bad: Ray, which has begun to start, must not be left behind."""
    there = StandInRay(stand_in, connected=False)
    made = connection.Connection(2, ClusterConfig())
    made.begin()
    threading.Timer(0.05, there.may_connect.set).start()
    made.close()
    assert there.calls == ["connect 2", "shutdown"]


def test_a_connection_that_was_never_begun_is_closed_at_once(stand_in: pytest.MonkeyPatch) -> None:
    there = StandInRay(stand_in, connected=False)
    connection.Connection(2, ClusterConfig()).close()
    assert there.calls == []


def test_a_connection_to_a_cluster_that_is_lost_is_left_to_the_end_of_the_process(
    stand_in: pytest.MonkeyPatch,
) -> None:
    """To leave it would take for ever."""
    there = StandInRay(stand_in, connected=False)
    there.may_connect.set()
    made = connection.Connection(2, ClusterConfig())
    made.wait()
    made.abandon()
    made.close()
    assert there.calls == ["connect 2"]


def test_a_connection_raises_the_error_where_it_is_waited_for(stand_in: pytest.MonkeyPatch) -> None:
    there = StandInRay(stand_in, connected=False, error=ClusterError("no cluster"))
    there.may_connect.set()
    made = connection.Connection(2, ClusterConfig())
    for _ in range(2):
        with pytest.raises(ClusterError, match="no cluster"):
            made.wait()
    made.close()
    assert there.calls == ["connect 2"]


def test_a_cluster_that_this_process_belongs_to_is_not_left(stand_in: pytest.MonkeyPatch) -> None:
    """A trial of a sweep runs on the cluster of the sweep."""
    there = StandInRay(stand_in, connected=True)
    made = connection.Connection(2, ClusterConfig())
    made.wait()
    made.close()
    assert there.calls == [] and there.connected


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

OWN_SIGTERM = """
import os, signal, time
from ray_l4.cluster.connection import Connection
from ray_l4.config.cluster import ClusterConfig
import ray
signal.signal(signal.SIGTERM, lambda *_: print("handled", flush=True))
made = Connection(1, ClusterConfig.model_validate({"ray": {"num_cpus": 1, "object_store_memory": 80_000_000}}))
made.wait()
assert ray.is_initialized()
time.sleep(1.0)
assert ray.get(ray.remote(num_cpus=1)(lambda: 7).remote()) == 7, "Ray outlives the start"
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(0.2)
made.close()
assert not ray.is_initialized()
"""


def printed(program: str) -> str:
    """The last word that a process prints which starts a local Ray."""
    words = [sys.executable, "-c", program]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert ended.stdout.split(), ended.stderr
    return ended.stdout.split()[-1]


@pytest.mark.ray
@pytest.mark.processes
def test_the_death_of_a_local_gcs_is_seen_without_asking_it() -> None:
    """With the real Ray: the table of processes that is asked is not part of its public interface."""
    assert printed(LOCAL_RAY + DEAD_GCS) == "gcs_server"


@pytest.mark.ray
@pytest.mark.processes
def test_a_local_raylet_that_hangs_is_given_up_within_the_time_of_a_process() -> None:
    """Ray's own patience is a minute, however short ``timeouts.control`` is."""
    assert 1.0 < float(printed(LOCAL_RAY + STOPPED_RAYLET)) < 15.0


@pytest.mark.ray
@pytest.mark.processes
def test_a_ray_that_started_in_the_background_lives_on_and_leaves_sigterm_alone() -> None:
    """Its processes die with the thread that started them, and it installs handlers of its own."""
    assert printed(OWN_SIGTERM) == "handled"
