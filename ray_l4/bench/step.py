"""``ray-l4 bench step``: two students' step here against the textbook's, in turns, in one run."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import torch

from ray_l4.bench.isolated_process import IsolatedProcess
from ray_l4.bench.ledger import provenance
from ray_l4.bench.spans import ceilings, quantiles
from ray_l4.bench.step_sides import Side, StepCase
from ray_l4.text.sampler import Sampler

_WARM_UP = 2
_COUNTED, _PROFILED = 2, 3
"""Steps beside the measured ones, of which operations are counted and spans are measured."""
BEYOND = _WARM_UP + _COUNTED + _PROFILED
"""Steps that a measurement takes beside those that it times."""


def measure(case: StepCase, steps: int, progress: Callable[[str], None]) -> dict[str, Any]:
    """Measure ``steps`` steps of both sides, each in a process of its own; they take turns step by step.

    Raises PeerError if one of the processes dies, for want of memory for example.
    """
    progress(f"{case.model}, batch {case.batch}: {steps} steps of each side, in turns")
    with closing(IsolatedProcess(Side, case, False)) as here, closing(IsolatedProcess(Side, case, True)) as textbook:
        times: list[list[tuple[float, float]]] = [[], []]
        for number in range(_WARM_UP + steps):
            for own, side in zip(times, (here, textbook), strict=True):
                own.append(side.call("step", number))
        peaks = [side.call("peak_memory") for side in (here, textbook)]
        progress("operations, bytes and spans")
        after = _WARM_UP + steps
        counted = [side.call("counts", after) for side in (here, textbook)]
        spans = here.call("shares", range(after + _COUNTED, after + _COUNTED + _PROFILED))
        progress("gradients of both sides")
        difference = _largest_difference(here.call("gradients"), textbook.call("gradients"))
    (cpu, wall), (cpu_textbook, wall_textbook) = (
        [list(own) for own in zip(*side[_WARM_UP:], strict=True)] for side in times
    )
    return {
        "bench": "step",
        "model": case.model,
        "batch": case.batch,
        "threads": case.threads,
        "cpu_ms_step": 1e3 * statistics.median(cpu),
        "textbook_cpu_ms_step": 1e3 * statistics.median(cpu_textbook),
        "speedup_over_textbook": _ratio(cpu_textbook, cpu),
        "wall_speedup_over_textbook": _ratio(wall_textbook, wall),
        "peak_rss_bytes": peaks[0][0],
        "memory_ratio_to_textbook": peaks[0][1] / peaks[1][1],
        "max_gradient_difference": difference,
        "padding_fraction": padding(case, range(_WARM_UP, after)),
        "spans": spans,
        "cpu_ms": {name: 1e3 * own for name, own in quantiles(cpu).items()},
        "wall_ms": {name: 1e3 * own for name, own in quantiles(wall).items()},
        "textbook_cpu_ms": {name: 1e3 * own for name, own in quantiles(cpu_textbook).items()},
        "textbook_wall_ms": {name: 1e3 * own for name, own in quantiles(wall_textbook).items()},
        "textbook_peak_rss_bytes": peaks[1][0],
        **_against_ceilings(case, [own._asdict() for own in counted], statistics.median(wall)),
        "steps": steps,
        "device": case.device,
        "precision": case.precision,
        "compile": case.compile,
        **provenance(),
    }


def padding(case: StepCase, steps: Sequence[int]) -> float:
    """Return the share of padding in the textbook's two grids: examples, and examples with the task's first token."""
    lengths = np.asarray([length for length, _ in case.lengths])
    sampler = Sampler(lengths, case.experiment(0.0).seed, 0, 1, case.batch, None)
    real = grid = 0
    for step in steps:
        own = lengths[sampler.indices(step)]
        real += 2 * int(own.sum()) + len(own)
        grid += len(own) * (2 * int(own.max()) + 1)
    return 1.0 - real / grid


def _ratio(theirs: Sequence[float], ours: Sequence[float]) -> float:
    """Return the median of the ratios of steps that followed each other."""
    return statistics.median(a / b for a, b in zip(theirs, ours, strict=True))


def _largest_difference(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> float:
    """Return the largest difference of two gradients, relative to the largest entry of the second one."""
    largest = max(float(np.abs(own).max()) for own in theirs)
    return max(float(np.abs(a - b).max()) for a, b in zip(ours, theirs, strict=True)) / largest


def _against_ceilings(case: StepCase, counted: Sequence[dict[str, int]], seconds: float) -> dict[str, Any]:
    """Return the counts of both sides, and which share of the machine's ceilings a step reaches here."""
    torch.set_num_threads(case.threads)
    limits = ceilings(torch.device(case.device), getattr(torch, case.precision))
    here, textbook = counted
    return {
        "flops": here["flops"],
        "textbook_flops": textbook["flops"],
        "bytes": here["num_bytes"],
        "textbook_bytes": textbook["num_bytes"],
        "ceiling_flops_per_second": limits.flops_per_second,
        "ceiling_bytes_per_second": limits.bytes_per_second,
        "share_of_flops_ceiling": here["flops"] / seconds / limits.flops_per_second,
        "share_of_bytes_ceiling": here["num_bytes"] / seconds / limits.bytes_per_second,
    }
