"""What a run is doing, as plain data for whoever watches."""

from __future__ import annotations

import copy
import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

log = logging.getLogger("ray_l4.coordinator")


@dataclass
class StudentProgress:
    """The latest figures of one student, smoothed over recent steps."""

    loss: float = 0.0
    disagreement: float = 0.0
    """Distillation term of the answer head: how far this student is from its teachers, in nats x T^2 a token."""
    tokens_per_second: float = 0.0
    wait_fraction: float = 0.0

    def update(self, figures: dict[str, float]) -> None:
        """Take in the figures of one more step."""
        names = ("forward_seconds", "wait_seconds", "backward_seconds", "idle_seconds")
        seconds = sum(figures[name] for name in names)
        fresh = {
            "loss": figures["loss"],
            "disagreement": figures["kd_qa"],
            "tokens_per_second": figures["tokens"] / seconds if seconds else 0.0,
            "wait_fraction": figures["wait_seconds"] / seconds if seconds else 0.0,
        }
        for name, value in fresh.items():
            before = getattr(self, name)
            setattr(self, name, value if before == 0.0 else _SMOOTHING * before + (1 - _SMOOTHING) * value)


_SMOOTHING = 0.9


@dataclass
class Snapshot:
    """One look at a run."""

    part: str = ""
    """What the run is a part of, if it is one: stands before what it does."""
    phase: str = "starting"
    stage: int = 0
    num_stages: int = 0
    task: str = ""
    epoch: int = 0
    num_epochs: int = 0
    step: int = 0
    num_steps: int = 0
    """Steps done and steps in all of the current stage."""
    steps_done: int = 0
    steps_total: int = 0
    """Over all stages; the total is an estimate until the last stage has begun."""
    training_seconds: float = 0.0
    students: list[StudentProgress] = field(default_factory=list)
    jobs_open: int = 0
    jobs_done: int = 0
    events: list[str] = field(default_factory=list)
    """Lines worth keeping, oldest first."""

    @property
    def remaining_seconds(self) -> float | None:
        """Estimate for the training still to come; None before the first step."""
        if not self.steps_done:
            return None
        return self.training_seconds / self.steps_done * max(self.steps_total - self.steps_done, 0)


class Progress:
    """The live record: one thread writes, any other may look."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._now = Snapshot()

    def set(self, **values: object) -> None:
        """Change fields of the record."""
        with self._lock:
            for name, value in values.items():
                setattr(self._now, name, value)

    def step(self, step: int, figures: Mapping[int, dict[str, float]], seconds: float) -> None:
        """Count one more step of training, with the figures of those that learned in it."""
        with self._lock:
            self._now.step = step + 1
            self._now.steps_done += 1
            self._now.training_seconds += seconds
            for student, values in figures.items():
                self._now.students[student].update(values)

    def event(self, line: str) -> None:
        """Add a line for people, and to the coordinator's log."""
        log.info("%s", line)
        with self._lock:
            self._now.events.append(f"{time.strftime('%H:%M:%S')} {line}")

    def scored(self, line: str) -> None:
        """Count one more score, with a line for people."""
        with self._lock:
            self._now.jobs_done += 1
        self.event(line)

    def look(self) -> Snapshot:
        """A copy of the record."""
        with self._lock:
            return copy.deepcopy(self._now)
