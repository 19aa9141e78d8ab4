"""Wait until the Ray cluster at RAY_ADDRESS has all its nodes, because ray-l4 refuses at once where there is no room.

usage: wait_for_nodes.py COUNT [SECONDS]
"""

from __future__ import annotations

import os
import socket
import sys
import time

import ray

POLL = 1.0


def wait_for(count: int, address: str, seconds: float) -> None:
    """Return when ``count`` nodes are alive. Raises SystemExit with what there is if they are not in time."""
    deadline = time.monotonic() + seconds
    found = 0
    while time.monotonic() < deadline:
        found = _nodes(address)
        if found >= count:
            return
        time.sleep(POLL)
    raise SystemExit(f"error: {found} of {count} nodes have joined the Ray cluster at {address} within {seconds:g} s")


def _nodes(address: str) -> int:
    """Living nodes; none while nothing listens there, for which Ray itself would wait long."""
    host, _, port = address.rpartition(":")
    if not ray.is_initialized():
        try:
            socket.create_connection((host, int(port)), POLL).close()
            ray.init(address=address, logging_level="ERROR", log_to_driver=False)
        except OSError:  # ConnectionError, Ray's own, is one
            return 0
    return sum(node["Alive"] for node in ray.nodes())


if __name__ == "__main__":
    wait_for(int(sys.argv[1]), os.environ["RAY_ADDRESS"], float(sys.argv[2]) if len(sys.argv) > 2 else 300.0)
