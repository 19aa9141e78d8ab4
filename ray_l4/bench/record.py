"""The record of one measured case: a JSON object with a fixed set of keys."""

from __future__ import annotations

import json
import os
from typing import TypedDict

import torch

from ray_l4.cluster.placement import usable_cores


class Record(TypedDict):
    """Measurements of one case at one number of peers. Keys are written in this order."""

    bench: str
    transport: str
    codec: str
    peers: int
    vocab: int
    positions: int
    """Predictions of a student in a step."""
    bytes_per_student_step: int
    """Bytes that a student hands to the exchange in a step: its payload, once per reader with the transport
    ``collective`` (other than for ``mean``), once with all others."""
    step_ms_p50: float
    """Time from the end of one step to the end of the next, by the clocks of the students."""
    wait_fraction: float | None
    """Share of that time from the end of ``forward`` until the predictions of all teachers have arrived. None in one
    process, where students take turns."""
    ratio_to_in_process: float
    """Median over the repeats of the step time, divided by that in one process in the same repeat."""
    peak_rss_bytes: int
    """Largest resident memory of any student's process, shared pages that it has touched included; in one process, of
    that process."""
    gradient_relative_error: float
    """L2 norm of the difference between the loss gradient over all parameters and that of dense float32, divided by the
    norm of the latter."""
    gradient_cosine: float
    precision: str
    """Type in which log-probabilities over the whole vocabulary are sent."""
    payload_bytes: int
    """A student's encoded predictions of one step."""
    bytes_received_per_student_step: int
    wire_bytes_per_student_step: int
    """Bytes that leave the student's process: those handed over, but 2 (N - 1) / N payloads if N peers reduce in a
    ring. Through the object store, it is one copy into the node's shared memory, plus one for every other node."""
    publish_ms_p50: float | None
    """Time to encode predictions and store them for all readers. None if sending cannot be told from receiving."""
    step_ms_p20: float
    step_ms_p80: float
    forward_ms_p50: float
    wait_ms_p50: float | None
    backward_ms_p50: float
    steps: int
    """Measured steps of each student."""
    steps_in_all: int
    """All steps of each student, warm-up included."""
    threads: int
    """PyTorch threads of each process."""
    cores: int
    parameters: int
    """Parameters of each model."""
    machine: str
    load: float
    """Load average of the machine over the last minute: above the number of cores, other work has slowed this down."""


def json_line(record: Record) -> str:
    """Return the record as one line of JSON."""
    return json.dumps(record)


def machine() -> str:
    """Describe this machine in a few words, without its name."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{usable_cores()} cores, {gpu}"


def load() -> float:
    """Return the number of runnable processes, averaged over the last minute."""
    return round(os.getloadavg()[0], 1)
