"""What it takes to repeat a failed step, as a student collects it; the teachers' payloads to bytes and back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import safetensors.torch

from ray_l4.exchange.codecs import Payload
from ray_l4.text.tokens import concatenated
from ray_l4.workers.calls import FailedStep

if TYPE_CHECKING:
    from ray_l4.learner.stage_run import StageRun


def failed_step(run: StageRun, payloads: Sequence[Payload]) -> FailedStep:
    """Collect what it takes, beside the weights, to repeat the step of ``run`` that is not finite."""
    step, guard = run.next_step, run.learner.guard
    batch = run.tokens.take(pa.array(run.sampler.indices(step)))
    if run.answered is not None:
        batch = concatenated(batch, run.answered)
    state = None if guard is None else guard.to_bytes()
    return FailedStep(run.failed or {}, run.rate(step), batch, run.memory, state, payload_bytes(payloads))


def payload_bytes(payloads: Sequence[Payload]) -> np.ndarray:
    """Return payloads in safetensors format: tensor ``i/name`` is of teacher i, and the metadata has the codecs."""
    tensors = {
        f"{index}/{name}": tensor.detach().cpu().clone()
        for index, payload in enumerate(payloads)
        for name, tensor in payload.tensors.items()
    }
    codecs = json.dumps([payload.codec for payload in payloads])
    return np.frombuffer(safetensors.torch.save(tensors, metadata={"codecs": codecs}), dtype=np.uint8)
