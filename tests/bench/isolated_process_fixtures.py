"""An object to keep in another process; this module imports nothing that takes time."""

from __future__ import annotations

import os

from ray_l4.errors import ClusterError, ConfigError


class Counter:
    """Adds numbers, and fails on request."""

    def __init__(self, start: int) -> None:
        if start < 0:
            raise ConfigError(f"{start} is below 0")
        self.count = start

    def add(self, number: int) -> int:
        if number == 13:
            raise ClusterError("not that one")
        if number == 0:
            os._exit(3)
        self.count += number
        return self.count

    def process(self) -> int:
        return os.getpid()
