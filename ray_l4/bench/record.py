"""What a measurement says: one JSON object a line."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass

import torch

from ray_l4.cluster.placement import usable_cores


@dataclass(frozen=True)
class Record:
    """One way for predictions to travel, at one number of peers. The fields are the keys, in this order."""

    bench: str
    transport: str
    codec: str
    peers: int
    vocab: int
    positions: int
    """Predictions that a student gives in a step."""
    bytes_per_student_step: int
    """What a student hands over in a step: its payload, once for each reader if they are served one by one
    (``collective``), once in all other cases."""
    step_ms_p50: float
    """From the end of one step to the end of the next one, by the students' own clocks."""
    wait_fraction: float | None
    """Share of that time between the end of ``forward`` and the moment when all predictions of the others are there.
    None in one process, where students take turns."""
    ratio_to_in_process: float
    """Median, over the rounds, of the step time here over that in one process in the same round."""
    peak_rss_bytes: int
    """Largest memory of a process, shared pages that it has touched included: of one student, or of the one process."""
    gradient_relative_error: float
    """Of the loss gradient over all parameters: L2 norm of the difference from dense float32, over its norm."""
    gradient_cosine: float
    precision: str
    """On the wire, of log-probabilities over the whole vocabulary."""
    payload_bytes: int
    """One student's encoded predictions of one step."""
    bytes_received_per_student_step: int
    wire_bytes_per_student_step: int
    """What leaves the student's process: as handed over, but 2 (N - 1) / N payloads where N peers sum up in a ring.
    Through the object store it is one copy into memory that a node shares, and one copy more for each other node."""
    publish_ms_p50: float | None
    """To encode predictions and store them for all readers. None where sending cannot be told from receiving."""
    step_ms_p20: float
    step_ms_p80: float
    forward_ms_p50: float
    wait_ms_p50: float | None
    backward_ms_p50: float
    steps: int
    """Measured, of each student."""
    steps_in_all: int
    """Those included of which nothing was kept."""
    threads: int
    """Of PyTorch in each process."""
    cores: int
    parameters: int
    """Of each model."""
    machine: str
    load: float
    """Of the machine, averaged over the last minute (``uptime``): above the number of cores, others were at work."""

    def line(self) -> str:
        """As a line of JSON."""
        return json.dumps(dataclasses.asdict(self))


def machine() -> str:
    """Where this runs, in a few words, without its name."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{usable_cores()} cores, {gpu}"


def load() -> float:
    """Runnable processes, averaged over a minute."""
    return round(os.getloadavg()[0], 1)
