"""``ray-l4 serve`` in one process, for small machines."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from ray_l4.errors import ClusterError, ConfigError, RunDirectoryError
from ray_l4.serve.access import is_loopback, read_keys
from ray_l4.serve.app import create_app
from ray_l4.serve.choice import served_checkpoint
from ray_l4.serve.extras import routers
from ray_l4.serve.follow import Follower
from ray_l4.serve.limits import Limits
from ray_l4.serve.meter import Meter
from ray_l4.serve.opening import ServeOptions
from ray_l4.serve.served_model import Loader
from ray_l4.serve.server import Server, bound_socket
from ray_l4.serve.service import Service
from ray_l4.workers.log import LineFormatter, log_level

_SWITCH = 0.0005
"""Seconds after which a busy thread lets another one run. With Python's own 0.005, the model's thread, which waits for
its turn after every operation of PyTorch, is slowed down by requests that come in."""
_START = 30.0
"""Seconds for the server to begin to listen."""


def keys_of(options: ServeOptions) -> frozenset[str]:
    """Return the API keys. Raises ConfigError if another machine could use the service without one."""
    if options.api_key_file is not None:
        return read_keys(options.api_key_file)
    if not is_loopback(options.host):
        raise ConfigError(
            f"--host {options.host}: other machines could use the service. Give a file of API keys (--api-key-file), "
            "or leave out --host for this machine alone."
        )
    return frozenset()


def open_service(options: ServeOptions) -> tuple[Service, Follower | None]:
    """Load what is served, and begin to follow its run if asked to.

    Raises the errors of loading, RunDirectoryError if no stage has finished, unless the run is followed.
    """
    sys.setswitchinterval(_SWITCH)
    limits, meter, run = Limits.model_validate(options.limits), Meter(), options.run
    if options.follow and run is None:
        raise ConfigError(f"--follow: {options.folder} is a checkpoint, which does not change. Give its run directory.")
    loader = Loader(limits, meter, options.device, options.trusts_code)
    service = Service(limits, meter, run)
    try:
        service.swap(loader.load(options.folder if run is None else served_checkpoint(run).folder))
    except RunDirectoryError:
        if not options.follow or run is None or run.state().stages_done:
            raise
    return service, Follower(run, service, loader) if options.follow and run is not None else None


def log_to_stderr() -> None:
    """Print what the service does, with times, to standard error."""
    handler, logger = logging.StreamHandler(), logging.getLogger("ray_l4.serve")
    handler.setFormatter(LineFormatter())
    logger.setLevel(log_level())
    logger.addHandler(handler)


def serve(
    options: ServeOptions, say: Callable[[str], None], beside: AbstractContextManager[None] | None = None
) -> None:
    """Serve until a signal arrives, which ends the requests under way first; it leaves as KeyboardInterrupt.

    ``beside``: entered once the service answers, and left when it ends.

    Raises ConfigError if the address is taken, and errors as ``open_service``.
    """
    keys = keys_of(options)
    bound = bound_socket(options.host, options.port)  # before the model: a mistake shows at once
    service, follower = open_service(options)
    app = create_app(service, keys, routers(service.run))
    server = Server(app, bound, service.limits)
    try:
        if not server.wait_until_started(_START):
            raise ClusterError(f"the server did not start within {_START:g} s")
        name = "no model yet" if service.current is None else f"{service.current.name}, {service.current.fingerprint}"
        say(f"serving {name} at {server.address} (Ctrl-C stops it)")
        with beside or nullcontext():
            server.wait()
            raise ClusterError("the server has ended by itself")
    except KeyboardInterrupt:
        say("stopping; requests under way are finished first")
        raise
    finally:
        if follower is not None:
            follower.close()
        server.stop()
