"""The record of a case from the figures of its single steps."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ray_l4.bench.gradient_error import Fidelity
from ray_l4.bench.grid import BenchCase, BenchGrid
from ray_l4.bench.record import Record, load, machine
from ray_l4.cluster.placement import usable_cores
from ray_l4.config.traits import CODECS
from ray_l4.run.step_loop import StepFigures

_PARTS = ("forward", "wait", "backward", "idle")
"""The parts of a student's time from the end of one step to the end of the next."""

StepSeries = Sequence[StepFigures]
"""Figures of consecutive steps."""


class Repeat(NamedTuple):
    """Steps of the baseline, and steps of the case right after them."""

    baseline: StepSeries
    tested: StepSeries


@dataclass(frozen=True)
class Measurements:
    """Everything that was measured of one case."""

    peers: int
    repeats: Sequence[Repeat]
    steps_in_all: int
    publish_seconds: Sequence[float]
    """Empty if sending cannot be told from receiving."""
    peak_memory: int
    """Bytes."""
    fidelity: Fidelity


def summarise(grid: BenchGrid, case: BenchCase, measured: Measurements) -> Record:
    """Return the record of one case."""
    peers, fidelity = measured.peers, measured.fidelity
    tested = [repeat.tested for repeat in measured.repeats]
    steps = [_step_ms(figures) for series in tested for figures in _figures_of(series)]
    waits = [1e3 * figures["wait_seconds"] for series in tested for figures in _figures_of(series)]
    p20, p50, p80 = np.percentile(steps, (20, 50, 80)).tolist()
    sent, received = (_mean(tested, name) for name in ("bytes_sent", "bytes_received"))
    # A ring sends more, or less, than the payload that it was given.
    handed = fidelity.payload_bytes if CODECS[case.codec].reduces else sent
    return Record(
        bench="exchange",
        transport=case.transport,
        codec=case.codec,
        peers=peers,
        vocab=grid.workload.vocab,
        positions=grid.workload.positions,
        bytes_per_student_step=handed,
        step_ms_p50=p50,
        wait_fraction=None if case.in_process else sum(waits) / sum(steps),
        ratio_to_in_process=statistics.median(_ratio(repeat) for repeat in measured.repeats),
        peak_rss_bytes=measured.peak_memory,
        gradient_relative_error=fidelity.relative_error,
        gradient_cosine=fidelity.cosine,
        precision=case.precision,
        payload_bytes=fidelity.payload_bytes,
        bytes_received_per_student_step=received,
        wire_bytes_per_student_step=0 if case.in_process else sent,
        publish_ms_p50=1e3 * statistics.median(measured.publish_seconds) if measured.publish_seconds else None,
        step_ms_p20=p20,
        step_ms_p80=p80,
        forward_ms_p50=_median_ms(tested, "forward_seconds"),
        wait_ms_p50=None if case.in_process else statistics.median(waits),
        backward_ms_p50=_median_ms(tested, "backward_seconds"),
        steps=sum(map(len, tested)),
        steps_in_all=measured.steps_in_all,
        threads=grid.profile(case, peers).students.threads or 0,
        cores=usable_cores(),
        parameters=grid.workload.num_parameters,
        machine=machine(),
        load=load(),
    )


def _figures_of(series: StepSeries) -> Iterator[dict[str, float]]:
    """Yield the figures of every student in every step."""
    return (figures for step in series for figures in step.values())


def _step_ms(figures: dict[str, float]) -> float:
    return 1e3 * sum(figures[f"{part}_seconds"] for part in _PARTS)


def _ratio(repeat: Repeat) -> float:
    tested, baseline = (
        statistics.median(map(_step_ms, _figures_of(series))) for series in (repeat.tested, repeat.baseline)
    )
    return tested / baseline


def _median_ms(tested: Sequence[StepSeries], name: str) -> float:
    return 1e3 * statistics.median(figures[name] for series in tested for figures in _figures_of(series))


def _mean(tested: Sequence[StepSeries], name: str) -> int:
    """Return the mean of a count that is (nearly) the same in all steps of all students."""
    return round(statistics.mean(figures[name] for series in tested for figures in _figures_of(series)))
