"""A measurement small enough for a test."""

from __future__ import annotations

import dataclasses
from typing import Any

from ray_l4.bench.grid import BenchGrid, StudentResources
from ray_l4.bench.workload import Workload

SMALL = Workload(vocab=300, examples=2, tokens=16, layers=1, width=16)


def grid(**changes: Any) -> BenchGrid:
    """Return a grid of two students and one exact codec, except for ``changes``."""
    whole = BenchGrid(
        workload=SMALL,
        peers=[2],
        transports=["in_process", "object_store", "collective"],
        codecs=["dense"],
        precisions=["float32"],
        steps=2,
        repeats=2,
        resources=StudentResources(threads=1, gpus=0.0, address=None, spread=False),
    )
    return dataclasses.replace(whole, **changes)
