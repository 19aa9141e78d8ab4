"""Live progress of a run, as plain data that any thread or process may read."""

from __future__ import annotations

import copy
import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

log = logging.getLogger("ray_l4.coordinator")

_SMOOTHING = 0.9
"""Weight of the previous value in the moving average of a student's figures."""

_EVENTS = 500
"""Messages that a snapshot holds at least: far more than come between two looks at it. Snapshots are copied and sent
twice a second, so they must not grow with the run."""


@dataclass
class StudentProgress:
    """Recent figures of one student, as moving averages over its steps."""

    loss: float = 0.0
    disagreement: float = 0.0
    """Distillation term of the answer head: the distance from this student to its teachers, in nats x T^2 per token."""
    tokens_per_second: float = 0.0
    wait_fraction: float = 0.0

    def update(self, figures: dict[str, float]) -> None:
        """Include the figures of one more step."""
        names = ("forward_seconds", "wait_seconds", "backward_seconds", "idle_seconds")
        seconds = sum(figures[name] for name in names)
        latest = {
            "loss": figures["loss"],
            "disagreement": figures["kd_qa"],
            "tokens_per_second": figures["tokens"] / seconds if seconds else 0.0,
            "wait_fraction": figures["wait_seconds"] / seconds if seconds else 0.0,
        }
        for name, value in latest.items():
            before = getattr(self, name)
            setattr(self, name, value if before == 0.0 else _SMOOTHING * before + (1 - _SMOOTHING) * value)


@dataclass
class ProgressSnapshot:
    """The progress of a run at one moment."""

    part: str = ""
    """Prefix that names the part of the run (``teachers: ``); empty for the run itself."""
    phase: str = "starting"
    stage: int = 0
    num_stages: int = 0
    task: str = ""
    epoch: int = 0
    num_epochs: int = 0
    step: int = 0
    """Steps done in the current stage."""
    num_steps: int = 0
    """Total steps of the current stage."""
    steps_done: int = 0
    """Steps done over all stages."""
    steps_total: int = 0
    """Total steps of all stages; an estimate until the last stage has begun."""
    replay_done: int = 0
    """Pseudo-examples generated for the current stage."""
    replay_total: int = 0
    """Pseudo-examples to be generated for the current stage; 0 unless they are being generated."""
    training_seconds: float = 0.0
    students: list[StudentProgress] = field(default_factory=list)
    jobs_open: int = 0
    jobs_done: int = 0
    events: list[str] = field(default_factory=list)
    """The newest messages for the user, oldest first. All of them are in the coordinator's log."""
    events_before: int = 0
    """Number of older messages, which are no longer among ``events``."""

    def events_since(self, seen: int) -> list[str]:
        """Return the messages after the first ``seen`` ones of the run."""
        return self.events[max(0, seen - self.events_before) :]

    @property
    def remaining_seconds(self) -> float | None:
        """Estimated training time left; None before the first step."""
        if not self.steps_done:
            return None
        return self.training_seconds / self.steps_done * max(self.steps_total - self.steps_done, 0)


class Progress:
    """Thread-safe record of a run's progress: the run's thread writes it, any other may take a snapshot."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._now = ProgressSnapshot()

    def update(self, **values: object) -> None:
        """Set fields of the record."""
        with self._lock:
            for name, value in values.items():
                setattr(self._now, name, value)

    def record_step(self, step: int, figures: Mapping[int, dict[str, float]], seconds: float) -> None:
        """Count one more training step, with the figures of the students that learned in it, by index."""
        with self._lock:
            self._now.step = step + 1
            self._now.steps_done += 1
            self._now.training_seconds += seconds
            for student, values in figures.items():
                self._now.students[student].update(values)

    def add_event(self, line: str) -> None:
        """Add a message for the user, prefixed with the time, and to the coordinator's log."""
        log.info("%s", line)
        with self._lock:
            self._now.events.append(f"{time.strftime('%H:%M:%S')} {line}")
            if len(self._now.events) > 2 * _EVENTS:
                self._now.events_before += len(self._now.events) - _EVENTS
                del self._now.events[:-_EVENTS]

    def warn(self, line: str) -> None:
        """Add a warning for the user."""
        self.add_event(f"warning: {line}")

    def record_score(self, line: str) -> None:
        """Count one more score, and add a message about it."""
        with self._lock:
            self._now.jobs_done += 1
        self.add_event(line)

    def snapshot(self) -> ProgressSnapshot:
        """Return a copy of the record."""
        with self._lock:
            return copy.deepcopy(self._now)
