"""From the figures of single steps to a record."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ray_l4.bench.gradient_error import Fidelity
from ray_l4.bench.grid import Plan, Way
from ray_l4.bench.record import Record, load, machine
from ray_l4.cluster.placement import usable_cores
from ray_l4.run.step_loop import StepFigures

_PARTS = ("forward", "wait", "backward", "idle")
"""What a student's time goes into, from the end of a step to the end of the next one."""

Turn = Sequence[StepFigures]
"""Some steps in a row."""


class Round(NamedTuple):
    """A turn in one process, and right after it one in the way under test."""

    alone: Turn
    tested: Turn


@dataclass(frozen=True)
class Measured:
    """All that was measured of one way."""

    peers: int
    rounds: Sequence[Round]
    steps_in_all: int
    publish_seconds: Sequence[float]
    """None where publishing cannot be told from the rest."""
    peak_memory: int
    fidelity: Fidelity


def summarised(plan: Plan, way: Way, measured: Measured) -> Record:
    """The record of one way."""
    peers, fidelity = measured.peers, measured.fidelity
    turns = [both.tested for both in measured.rounds]
    steps = [_step_ms(own) for turn in turns for own in _students_of(turn)]
    waits = [1e3 * own["wait_seconds"] for turn in turns for own in _students_of(turn)]
    p20, p50, p80 = np.percentile(steps, (20, 50, 80)).tolist()
    sent, received = (_mean(turns, name) for name in ("bytes_sent", "bytes_received"))
    # What the ring sends says nothing of what was given to it.
    handed = fidelity.payload_bytes if way.codec == "mean" else sent
    return Record(
        bench="exchange",
        transport=way.transport,
        codec=way.codec,
        peers=peers,
        vocab=plan.workload.vocab,
        positions=plan.workload.positions,
        bytes_per_student_step=handed,
        step_ms_p50=p50,
        wait_fraction=None if way.in_one_process else sum(waits) / sum(steps),
        ratio_to_in_process=statistics.median(_ratio(both) for both in measured.rounds),
        peak_rss_bytes=measured.peak_memory,
        gradient_relative_error=fidelity.relative_error,
        gradient_cosine=fidelity.cosine,
        precision=way.precision,
        payload_bytes=fidelity.payload_bytes,
        bytes_received_per_student_step=received,
        wire_bytes_per_student_step=0 if way.in_one_process else sent,
        publish_ms_p50=1e3 * statistics.median(measured.publish_seconds) if measured.publish_seconds else None,
        step_ms_p20=p20,
        step_ms_p80=p80,
        forward_ms_p50=_median_ms(turns, "forward_seconds"),
        wait_ms_p50=None if way.in_one_process else statistics.median(waits),
        backward_ms_p50=_median_ms(turns, "backward_seconds"),
        steps=sum(map(len, turns)),
        steps_in_all=measured.steps_in_all,
        threads=plan.profile(way, peers).students.threads or 0,
        cores=usable_cores(),
        parameters=plan.workload.num_parameters,
        machine=machine(),
        load=load(),
    )


def _students_of(turn: Turn) -> Iterator[dict[str, float]]:
    """Every student's figures of every step."""
    return (own for step in turn for own in step.values())


def _step_ms(figures: dict[str, float]) -> float:
    return 1e3 * sum(figures[f"{part}_seconds"] for part in _PARTS)


def _ratio(both: Round) -> float:
    tested, alone = (statistics.median(map(_step_ms, _students_of(turn))) for turn in (both.tested, both.alone))
    return tested / alone


def _median_ms(turns: Sequence[Turn], name: str) -> float:
    return 1e3 * statistics.median(own[name] for turn in turns for own in _students_of(turn))


def _mean(turns: Sequence[Turn], name: str) -> int:
    """Of a count that is the same in all steps of all students, or nearly."""
    return round(statistics.mean(own[name] for turn in turns for own in _students_of(turn)))
