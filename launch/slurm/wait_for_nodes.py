"""Wait until the Ray cluster at RAY_ADDRESS has all its nodes, because ray-l4 fails at once if there is no room.

usage: wait_for_nodes.py COUNT [SECONDS]
"""

from __future__ import annotations

import os
import socket
import sys
import time

import ray

POLL = 1.0
"""Seconds between two queries."""


def wait_for(count: int, address: str, seconds: float) -> None:
    """Return when ``count`` nodes are alive. Raises SystemExit with the number found if that takes too long."""
    deadline = time.monotonic() + seconds
    found = 0
    while time.monotonic() < deadline:
        found = _nodes(address)
        if found >= count:
            return
        time.sleep(POLL)
    raise SystemExit(f"error: {found} of {count} nodes have joined the Ray cluster at {address} within {seconds:g} s")


def _nodes(address: str) -> int:
    """Return the number of living nodes; 0 while nothing listens at the address, where Ray itself would block."""
    host, _, port = address.rpartition(":")
    if not ray.is_initialized():
        try:
            socket.create_connection((host, int(port)), POLL).close()
            ray.init(address=address, logging_level="ERROR", log_to_driver=False)
        except OSError:  # includes ConnectionError, which Ray raises
            return 0
    return sum(node["Alive"] for node in ray.nodes())


if __name__ == "__main__":
    wait_for(int(sys.argv[1]), os.environ["RAY_ADDRESS"], float(sys.argv[2]) if len(sys.argv) > 2 else 300.0)
