"""A student: a learner and the codec by which it speaks to its peers. An actor on Ray, a plain object without."""

from __future__ import annotations

import resource
import time
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from ray_l4.config.cluster import ClusterConfig, Resources
from ray_l4.errors import PeerError
from ray_l4.exchange.codecs import CODECS, Payload, num_bytes
from ray_l4.learner.learner import Learner
from ray_l4.learner.models import build_model, describe, load_bytes, pick_device
from ray_l4.runtime.setup import Setup
from ray_l4.seeds import derive


class Student:
    """Calls arrive in order. One that belongs to an older generation, or is not the next step, is refused."""

    def __init__(self, peer: int, setup: Setup, cluster: ClusterConfig) -> None:
        self.peer = peer
        self._setup = setup
        self._resources = cluster.students
        self._codec = CODECS[cluster.exchange.codec, cluster.exchange.precision]
        self._generation = 0
        self._times: dict[str, float] = {}
        self._bytes_sent = 0

    def start(self) -> None:
        """Build the model. Raises ModelError if it cannot be loaded, PeerError if the device is not there."""
        use_threads(self._resources)
        self._device = pick_device(self._resources.gpus)
        self.reset()

    def reset(self) -> None:
        """Begin anew, with the weights of the start. Raises ModelError if the model cannot be loaded."""
        setup, experiment = self._setup, self._setup.experiment
        names = ("init",) if experiment.peers.init == "shared" else ("init", self.peer)
        model = build_model(experiment.model, setup.tokenizer, derive(experiment.seed, *names)).to(self._device)
        self._learner = Learner(self.peer, model, setup.tokenizer, experiment, setup.method)

    def describe(self) -> dict[str, Any]:
        """The model's configuration, from which an evaluator builds the same architecture."""
        return describe(self._learner.model)

    def load(self, weights: np.ndarray) -> None:
        """Continue from the weights of a checkpoint."""
        load_bytes(self._learner.model, weights)

    def begin(self, generation: int, stage: int, tokens: pa.Table, memory: pa.Table | None = None) -> list[int]:
        """Enter a stage; from now on only calls of ``generation`` are served. Gives the last step of each epoch."""
        self._generation = generation
        self._learner.begin_stage(stage, tokens, memory)
        self._times = {}
        sampler = self._learner.sampler
        return [sampler.last_step_of(epoch) for epoch in range(self._learner.experiment.training.epochs)]

    def forward(self, generation: int, step: int, publish: bool) -> dict[str, np.ndarray]:
        """Predictions of the step, encoded for the peers that learn from this one, if there are any in this pass."""
        self._check(generation)
        self._mark("idle")
        payload = self._codec.encode(self._learner.forward(step, publish=publish))
        self._bytes_sent = num_bytes(payload)
        self._mark("forward")
        return payload

    def predict(self, generation: int, step: int, student: int) -> dict[str, np.ndarray]:
        """Predictions for the batch of another student's step, encoded; this one learns nothing."""
        self._check(generation)
        return self._codec.encode(self._learner.predict(step, student))

    def backward(self, generation: int, step: int, *payloads: Payload) -> dict[str, float]:
        """Learn the step from labels and teachers' predictions. Gives its figures, with times in seconds."""
        self._check(generation)
        self._mark("wait")
        device = self._learner.device
        figures = self._learner.backward(step, [self._codec.decode(payload, device) for payload in payloads])
        self._mark("backward")
        times = {f"{name}_seconds": self._times.get(name, 0.0) for name in ("forward", "wait", "backward", "idle")}
        traffic = {"bytes_sent": self._bytes_sent, "bytes_received": sum(map(num_bytes, payloads))}
        return figures | times | traffic

    def consolidate(self) -> np.ndarray | None:
        """Let the guard take note of the stage that was learned. Gives all it knows, None if it keeps nothing."""
        guard = self._learner.guard
        if guard is None:
            return None
        guard.after_stage(self._learner)
        return guard.to_bytes()

    def restore_guard(self, data: np.ndarray) -> None:
        """Go on with what ``consolidate`` gave. Raises ModelError if it is damaged."""
        if self._learner.guard is not None:
            self._learner.guard.restore(data, self._device)

    def weights(self) -> np.ndarray:
        """The model's weights now, as safetensors bytes."""
        return self._learner.weights()

    def peak_memory(self) -> int:
        """Largest memory so far, in bytes."""
        return peak_memory_bytes()

    def _check(self, generation: int) -> None:
        if generation != self._generation:
            raise PeerError(f"student {self.peer}: a call of generation {generation}, but it serves {self._generation}")

    def _mark(self, name: str) -> None:
        """The time since the last mark was spent on ``name``."""
        now = time.perf_counter()
        self._times[name] = now - self._times.get("mark", now)
        self._times["mark"] = now


def use_threads(resources: Resources) -> None:
    """Give PyTorch in this process as many threads as the profile says."""
    if resources.threads is not None:
        torch.set_num_threads(resources.threads)


def peak_memory_bytes() -> int:
    """Largest memory of this process: on the GPU if it uses one, else resident."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
