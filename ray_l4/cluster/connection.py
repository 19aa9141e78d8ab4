"""Joins the Ray cluster of a profile, or starts one on this machine."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import ray
from ray._private.ray_constants import PROCESS_TYPE_GCS_SERVER, PROCESS_TYPE_RAYLET
from ray.exceptions import AuthenticationError, RayError

from ray_l4.cluster.local_access import draw_token, on_loopback, variables
from ray_l4.cluster.placement import check_room, local_resources
from ray_l4.cluster.temporary_folder import check_temporary_folder, full_temporary_folder, temporary_folder
from ray_l4.cluster.watchdog import Watchdog
from ray_l4.config.cluster import ClusterConfig
from ray_l4.errors import ClusterError, SessionLostError, first_line
from ray_l4.store.full_disk import is_full_disk
from ray_l4.workers.log import DEBUG_VARIABLE

_CONNECT_TIMEOUT = 10.0
_GCS_TIMEOUT = "10"
_NODE_CHECKS = 3
"""Checks of a node manager without an answer after which it is given up."""
_PASSED_ON = (DEBUG_VARIABLE, "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH")
"""Variables that processes on a cluster which is joined get from this one; those of a local cluster inherit all."""
_SIGACTION = 256
"""Bytes that are enough for the operating system's record of a signal's handler."""
_IDLE_WORKER_LIFE = "60000"
"""Milliseconds for which the workers that Ray starts ahead wait to become students. Its own limit is one second, less
than the coordinator needs to start."""


class Connection:
    """A Ray cluster that this process joins or starts in the background, while it prepares data.

    If the process belongs to a cluster already, it is only used.
    """

    def __init__(self, peers: int, cluster: ClusterConfig) -> None:
        """Do not connect yet. ``peers``: students for which the cluster needs room."""
        self._given = (peers, cluster)
        self._begun = self._is_ours = False
        self._error: Exception | None = None
        # Not Thread.join: after a KeyboardInterrupt in it, Python 3.11 takes a running thread for ended.
        self._tried = threading.Event()
        self._closed = threading.Event()

    def begin(self) -> None:
        """Begin to connect. Does nothing the second time."""
        if self._begun:
            return
        self._begun, self._is_ours = True, not ray.is_initialized()
        if self._is_ours:
            threading.Thread(target=self._connect, args=self._given, name="connect", daemon=True).start()
        else:
            self._tried.set()

    def wait(self) -> None:
        """Connect, and wait for the cluster; ``timeouts.start`` bounds it. Raises as ``connect``."""
        self.begin()
        self._tried.wait()
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Leave the cluster, and end it if it was started here. Does nothing the second time."""
        if self._begun:
            self._tried.wait()
        if self._is_ours and ray.is_initialized():
            ray.shutdown()
        self._closed.set()

    def abandon(self) -> None:
        """Let ``close`` do nothing, because the cluster does not answer: its processes end with this one."""
        self._is_ours = False

    def _connect(self, peers: int, cluster: ClusterConfig) -> None:
        try:
            connect(peers, cluster)
        except Exception as error:  # ``wait`` raises it, whatever it is
            self._error = error
        finally:
            self._tried.set()
        # On Linux, Ray's processes die with the thread that started them.
        self._closed.wait()


def connect(peers: int, cluster: ClusterConfig) -> None:
    """Join the profile's cluster, or start one on this machine.

    Raises ClusterError if neither is possible, and SessionLostError if one that starts here loses a process meanwhile.
    """
    options: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    if cluster.ray.address is None:
        resources = local_resources(cluster)
        check_room(peers, cluster, [resources])
        check_temporary_folder()
        # Ray ends every process that has lost the GCS for so long. On one machine, it comes back at once or never.
        os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", _GCS_TIMEOUT)
        options |= {
            "num_cpus": int(resources["CPU"]),
            "num_gpus": int(resources["GPU"]),
            "object_store_memory": cluster.ray.object_store_memory,
            "include_dashboard": cluster.ray.dashboard,
            "address": "local",
            "_temp_dir": str(temporary_folder()[0].absolute() / "ray"),
        }
        draw_token()
    else:
        options["address"] = cluster.ray.address
        own = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        if own:
            options["runtime_env"] = {"env_vars": own}
        check_answers(cluster.ray.address)
    watchdog = Watchdog() if cluster.ray.address is None else None
    limit = threading.Timer(cluster.timeouts.start, _end_process, [cluster.timeouts.start])
    limit.daemon = True
    limit.start()
    try:
        with ExitStack() as settings:
            settings.enter_context(_own_sigterm())
            if cluster.ray.address is None:
                settings.enter_context(on_loopback())
                settings.enter_context(variables(_node_checks(cluster.timeouts.control)))
                settings.enter_context(variables({"RAY_idle_worker_killing_time_threshold_ms": _IDLE_WORKER_LIFE}))
            ray.init(**options)
        if watchdog is not None:
            watchdog.watch(Path(ray._private.worker.global_worker.node.get_session_dir_path()))
    except AuthenticationError as error:
        raise ClusterError(
            f"ray.address: the cluster at {cluster.ray.address or 'this machine'} refuses this command's token, or got "
            "none. Set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to the file with the cluster's token."
        ) from error
    except Exception as error:  # Ray raises this very class, too, if its raylet dies or hangs while it starts
        where = cluster.ray.address or "this machine"
        if is_full_disk(error):
            raise ClusterError(f"ray: cannot start on {where}: {full_temporary_folder()}.") from error
        may_work_later = cluster.ray.address is None and not isinstance(error, ValueError)
        raise (SessionLostError if may_work_later else ClusterError)(
            f"ray.address: cannot use a Ray cluster at {where}: {str(error).strip() or type(error).__name__}. "
            "Is it running (ray status), and reachable from here?"
        ) from error
    finally:
        limit.cancel()


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep this process's handling of SIGTERM: Ray installs handlers that end the process at once.

    It has one in Python, in the main thread alone, and one in C++, which Python's ``signal`` removes in the main thread
    alone.
    """
    own, libc, action = signal.getsignal(signal.SIGTERM), ctypes.CDLL(None), ctypes.create_string_buffer(_SIGACTION)
    libc.sigaction(int(signal.SIGTERM), None, action)
    try:
        yield
    finally:
        libc.sigaction(int(signal.SIGTERM), action, None)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, own)


def _node_checks(limit: float) -> dict[str, str]:
    """Return how Ray's control store checks on a node manager: it gives one up that has not answered for ``limit``
    seconds. Its own patience is a minute, whatever the limit."""
    share = limit / _NODE_CHECKS
    checks = {
        "initial_delay_ms": 0,
        "failure_threshold": _NODE_CHECKS,
        "timeout_ms": max(round(1000 * 2 * share / 3), 1),
        "period_ms": max(round(1000 * share / 3), 1),
    }
    return {f"RAY_health_check_{name}": str(value) for name, value in checks.items()}


def _end_process(limit: float) -> None:
    """End this process: nothing can interrupt Ray when it waits for a cluster that does not answer."""
    message = f"error: ray: the cluster has not started, or was not joined, within {limit:g} s (timeouts.start)\n"
    os.write(2, message.encode())  # not through Python's streams, which may be in use
    os._exit(SessionLostError.exit_code)


def check_cluster(peers: int, cluster: ClusterConfig) -> None:
    """Raise ClusterError if the profile's cluster cannot be joined, or is too small even when nothing else runs on it.

    Joining a running cluster takes a second; reading the data of a run, which comes next, may take minutes.
    """
    if cluster.in_one_process:
        return
    if cluster.ray.address is None:
        check_room(peers, cluster, [local_resources(cluster)])
        check_temporary_folder()
        return
    joins = not ray.is_initialized()
    if joins:
        connect(peers, cluster)
    try:
        check_room(peers, cluster, node_resources())
    finally:
        if joins:
            ray.shutdown()


def check_session() -> None:
    """Raise SessionLostError if this process's node no longer belongs to a Ray cluster that answers."""
    if not own_node_is_alive():
        raise SessionLostError("ray: the node manager (raylet) of this machine is gone")


def own_node_is_alive() -> bool:
    """Return whether the cluster takes this process's node for alive. Raises SessionLostError if it does not answer."""
    if not ray.is_initialized():  # a question would start a cluster
        raise SessionLostError("ray: this process has left the cluster")
    try:
        here = ray.get_runtime_context().get_node_id()
        return any(node["Alive"] and node["NodeID"] == here for node in ray.nodes())
    except (RayError, ConnectionError, RuntimeError, ValueError) as error:
        raise SessionLostError(f"ray: the cluster does not answer any more ({first_line(error)})") from error


def dead_process() -> str | None:
    """Return what has died of the local Ray that this process started, the raylet or the GCS; None if neither has.

    Asks the operating system, and so never waits.
    """
    node = ray._private.worker._global_node
    dead = [] if node is None else [kind for kind, _ in node.dead_processes()]
    return next((kind for kind in dead if kind in (PROCESS_TYPE_GCS_SERVER, PROCESS_TYPE_RAYLET)), None)


def check_answers(address: str) -> None:
    """Raise ClusterError at once if nothing listens at ``address``; Ray itself would try for minutes."""
    if address.startswith("ray://"):
        raise ClusterError(
            f"ray.address: {address} is a Ray Client address. The run directory would not be on the machine of the "
            "coordinator, which writes it. Start ray-l4 on a node of the cluster, with ray.address: auto."
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        return  # Ray looks up "auto" and the like
    try:
        socket.create_connection((host, int(port)), _CONNECT_TIMEOUT).close()
    except OSError as error:
        raise ClusterError(
            f"ray.address: nothing answers at {address} ({error.strerror or error}). "
            "Is the cluster running (ray status), and reachable from here?"
        ) from error


def node_resources() -> list[dict[str, float]]:
    """Return the resources of every node that is alive."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]
