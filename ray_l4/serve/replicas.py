"""``ray-l4 serve`` with several copies of the model: replicas of Ray Serve, each with the whole app.

Ray Serve's proxy takes connections and hands each request to a replica; it starts a replica again that has died. Every
replica follows the run by itself. Their counters are files of one folder, so that a replica tells those of all on its
machine.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import ray
from ray import serve as ray_serve
from ray.serve.schema import ApplicationStatus, LoggingConfig

from ray_l4.cluster.connection import Connection
from ray_l4.cluster.local_access import variables
from ray_l4.cluster.session_watch import SessionWatch
from ray_l4.config.cluster import ClusterConfig, EvaluatorResources
from ray_l4.errors import ClusterError, ConfigError, ModelError
from ray_l4.serve.limits import Limits
from ray_l4.serve.opening import ServeOptions
from ray_l4.serve.proxy_errors import CALLBACK
from ray_l4.store.checksums import damaged_in

APP = "ray-l4"
_NAP = 0.2
_SPARE_SECONDS = 15.0
"""Seconds beyond a replica's own limit at which the proxy gives a request up."""
_ATTEMPTS = 3
"""Attempts to start a replica before the service is given up."""
_METRICS = "PROMETHEUS_MULTIPROC_DIR"
_FAILED = (ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY)


class Replica:
    """A model and the app, in a process of Ray Serve."""

    def __init__(self, options: ServeOptions, resources: EvaluatorResources, keys: frozenset[str]) -> None:
        """Load the model. Raises the errors of ``open_service``."""
        session = Path(ray._private.worker.global_worker.node.get_session_dir_path())
        folder = session / "ray-l4-serve"
        folder.mkdir(mode=0o700, exist_ok=True)
        os.environ[_METRICS] = str(folder)  # read when the library of counters is imported, which is now
        from ray_l4.serve.one_process import log_to_stderr, open_service
        from ray_l4.workers.process import use_threads

        use_threads(resources)
        log_to_stderr()
        self._keys = keys
        self._service, self._follower = open_service(options)

    def __serve_build_asgi_app__(self) -> Any:
        from ray_l4.serve.app import create_app
        from ray_l4.serve.extras import routers

        return create_app(self._service, self._keys, routers(self._service.run))

    def check_health(self) -> None:
        """Raise RuntimeError if the model's thread has ended; Ray Serve then starts the replica again."""
        model = self._service.current
        if model is not None and not model.generator.is_alive():
            raise RuntimeError("the thread of the model has ended")


def serve(
    options: ServeOptions,
    profile: ClusterConfig,
    replicas: int,
    say: Callable[[str], None],
    beside: AbstractContextManager[None] | None = None,
) -> None:
    """Serve until a signal arrives, which ends the requests under way first; it leaves as KeyboardInterrupt.

    ``beside``: as in one process.

    Raises ConfigError if the address is taken, ClusterError if the cluster cannot be used or has no room, and errors as
    ``open_service``.
    """
    from ray_l4.serve.choice import served_checkpoint
    from ray_l4.serve.one_process import keys_of
    from ray_l4.serve.server import bound_socket

    _check_profile(profile, replicas)
    limits, keys, run = Limits.model_validate(options.limits), keys_of(options), options.run
    bound = bound_socket(options.host, options.port)
    port = bound.getsockname()[1]
    if run is None or not options.follow or run.state().stages_done:
        # Before anything is started: an error of a replica takes Ray Serve half a minute to report.
        _refuse_damaged(options.folder if run is None else served_checkpoint(run).folder)
    with _connected(profile, replicas) as watch:
        bound.close()  # the proxy takes the address
        deadline = time.monotonic() + profile.timeouts.start
        _start_proxy(options.host, port, limits)
        try:
            ray_serve.run_many(
                [ray_serve.RunTarget(_application(options, profile, replicas, limits, keys), APP, "/", _quiet())],
                wait_for_applications_running=False,
            )
            _wait_until_running(watch, deadline)
            host = f"[{options.host}]" if ":" in options.host else options.host
            say(f"serving {options.folder} with {replicas} replicas at http://{host}:{port} (Ctrl-C stops it)")
            with beside or nullcontext():
                while True:
                    _raise_if_lost(watch)
                    time.sleep(_NAP)
        except KeyboardInterrupt:
            say("stopping; requests under way are finished first")
            raise
        finally:
            if watch.loss() is None:
                _end(local=profile.ray.address is None)


def _refuse_damaged(folder: Path) -> None:
    damaged = damaged_in(folder)
    if damaged is not None:
        raise ModelError(f"{damaged}. Copy the checkpoint again, or take another one.")


def _end(local: bool) -> None:
    """Let the replicas finish what is under way; on a cluster of others, end Ray Serve too, which would stay."""
    ray_serve.delete(APP)
    if not local:
        ray_serve.shutdown()


def _check_profile(profile: ClusterConfig, replicas: int) -> None:
    if profile.in_one_process:
        raise ConfigError(
            f"--cluster: the profile {profile.name} runs everything in one process, and {replicas} replicas need Ray. "
            "Choose another profile, or leave out --cluster and --replicas."
        )


@contextmanager
def _connected(profile: ClusterConfig, replicas: int) -> Iterator[SessionWatch]:
    """Join the profile's cluster, or start one here, which ends with this context."""
    room = profile.model_copy(update={"evaluators": profile.evaluators.model_copy(update={"count": replicas})})
    connection = Connection(0, room)
    try:
        with variables(CALLBACK):
            connection.wait()
        watch = SessionWatch(profile.timeouts.control, lambda loss: None)
        try:
            yield watch
        finally:
            watch.close()
            if watch.loss() is not None:
                connection.abandon()
    finally:
        connection.close()


def _start_proxy(host: str, port: int, limits: Limits) -> None:
    """Start Ray Serve. Raises ClusterError if it is there already: its address is another one."""
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    if ray_serve.status().proxies:
        raise ClusterError(
            "ray: Ray Serve is running on this cluster already, at an address of its own. End it (serve shutdown), or "
            "choose another cluster."
        )
    ray_serve.start(
        proxy_location="HeadOnly",
        http_options={
            "host": host,
            "port": port,
            "request_timeout_s": limits.request_seconds + _SPARE_SECONDS,
        },
        logging_config=_quiet(),
    )


def _application(
    options: ServeOptions, profile: ClusterConfig, replicas: int, limits: Limits, keys: frozenset[str]
) -> ray_serve.Application:
    """Return what Ray Serve runs: as many replicas, each with the resources of an evaluator of the profile."""
    resources = profile.evaluators
    most = limits.queue + limits.batch
    deployment = ray_serve.deployment(
        ray_serve.ingress()(Replica),
        name="replica",
        num_replicas=replicas,
        ray_actor_options={
            "num_cpus": resources.cpus,
            "num_gpus": resources.gpus,
            "resources": dict(resources.resources),
        },
        max_ongoing_requests=most,
        max_queued_requests=most,
        max_constructor_retry_count=_ATTEMPTS,
        graceful_shutdown_wait_loop_s=_NAP,
        graceful_shutdown_timeout_s=limits.stop_seconds,
        logging_config=_quiet(),
    )
    absolute = {"folder": options.folder.resolve()}
    return deployment.bind(ServeOptions(**{**vars(options), **absolute}), resources, keys)


def _wait_until_running(watch: SessionWatch, deadline: float) -> None:
    """Wait for the replicas. Raises ClusterError, with what Ray Serve says, if they do not start in time."""
    while True:
        _raise_if_lost(watch)
        found = ray_serve.status().applications.get(APP)
        if found is not None and found.status == ApplicationStatus.RUNNING:
            return
        if found is not None and found.status in _FAILED:
            raise ClusterError(f"no replica could be started: {_cause(found)}")
        if time.monotonic() > deadline:
            status = "no application" if found is None else f"{found.status.value}: {found.message}"
            raise ClusterError(f"the replicas did not start in time (timeouts.start); Ray Serve says {status}")
        time.sleep(_NAP)


def _cause(found: Any) -> str:
    """Return the last line of what Ray Serve says, which holds the error of the replica."""
    texts = [found.message, *(each.message for each in found.deployments.values())]
    lines = [line.strip() for text in texts for line in text.splitlines() if "Error:" in line]
    return lines[-1].partition("Error: ")[2] if lines else " ".join(found.message.split())


def _raise_if_lost(watch: SessionWatch) -> None:
    loss = watch.loss()
    if loss is not None:
        raise loss


def _quiet() -> LoggingConfig:
    return LoggingConfig(log_level="WARNING", enable_access_log=False)
