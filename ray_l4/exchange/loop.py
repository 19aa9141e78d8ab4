"""The training of one stage, as the coordinator sees it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ray_l4.exchange.transports import Transport
from ray_l4.methods import Topology

StepFigures = list[dict[str, float]]
"""Figures of one step, one entry a student."""


def train_steps(
    transport: Transport,
    students: Sequence[Any],
    topology: Topology,
    generation: int,
    steps: Iterable[int],
    *,
    steps_ahead: int,
    timeout: float,
    where: str,
    on_step: Callable[[int, StepFigures], None],
) -> None:
    """Run ``steps`` on all students, each learning from its teachers' predictions of the same step.

    Calls are submitted ``steps_ahead`` steps early, so no student waits for the coordinator, and predictions go from
    student to student: their references are dropped as soon as they are handed on. ``on_step`` sees the figures of
    every step, in order, and late. Raises PeerError if a student dies, fails, or takes longer than ``timeout`` seconds.
    """
    window: deque[tuple[int, list[Any]]] = deque()

    def collect() -> None:
        step, done = window.popleft()
        figures = [
            transport.get(reference, timeout, f"student {peer}, {where}, step {step}")
            for peer, reference in enumerate(done)
        ]
        on_step(step, figures)

    for step in steps:
        sent = [transport.submit(student, "forward", generation, step) for student in students]
        done = [
            transport.submit(student, "backward", generation, step, *(sent[j] for j in topology.teachers_of(i)))
            for i, student in enumerate(students)
        ]
        window.append((step, done))
        del sent
        if len(window) > steps_ahead:
            collect()
    while window:
        collect()
