"""Keeps a Ray cluster on this machine to its user: a token of its own, loopback alone, a private folder."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from ray._private import ray_constants
from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]  # compiled, and not in its stub

TOKEN_VARIABLE = "RAY_AUTH_TOKEN"
TOKEN_VARIABLES = (TOKEN_VARIABLE, "RAY_AUTH_TOKEN_PATH")
_ADDRESS_VARIABLE = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR
_LOOPBACK = {_ADDRESS_VARIABLE: "0", "GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
"""What makes the processes of a cluster listen there: Ray itself, and the process groups of PyTorch."""

_drawn: set[str] = set()
"""Tokens drawn in this process: unlike a user's, they are replaced when the next cluster starts."""


def draw_token() -> None:
    """Let the next local cluster have a random token, unless the user has set one.

    It is in the environment of this process and its children alone. Without it, Ray takes the token that it keeps in
    the home folder, which is the same for all clusters. Ray itself turns authentication on for a local cluster unless
    RAY_AUTH_MODE says otherwise.
    """
    if os.environ.get(TOKEN_VARIABLE) in _drawn or not any(map(os.environ.get, TOKEN_VARIABLES)):
        token = secrets.token_hex(32)
        _drawn.add(token)
        os.environ[TOKEN_VARIABLE] = token
        AuthenticationTokenLoader.instance().reset_cache()


@contextmanager
def on_loopback() -> Iterator[None]:
    """Let a cluster that starts within the block listen at the loopback address alone, unless the user has set it.

    Ray has no parameter for that (it replaces ``_node_ip_address="127.0.0.1"``), only a variable that says whether this
    machine can be part of a cluster with others. Ray has read it at its import, its processes read it at their start.
    """
    if _ADDRESS_VARIABLE in os.environ:
        yield
        return
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        with variables(_LOOPBACK):
            yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextmanager
def variables(wanted: Mapping[str, str]) -> Iterator[None]:
    """Let processes that start within the block have these environment variables, unless the user has set them."""
    added = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]
