"""Small experiments to plan for, and the real training that a simulated step stands for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch

from ray_l4.config.cluster import ClusterConfig
from ray_l4.config.experiment import ExperimentConfig
from ray_l4.exchange.codecs import Payload, build_codec
from ray_l4.learner.learner import Learner
from ray_l4.learner.models import build_model
from ray_l4.learner.sharding import Alone
from ray_l4.methods import get_method, resolved
from ray_l4.planning.batch_shape import batch_shape
from ray_l4.planning.memory_trace import MemoryTrace
from ray_l4.planning.meta_models import vocabulary_of

SHAPE: Mapping[str, Any] = {"layers": 1, "width": 64, "heads": 4, "positions": 48, "vocabulary": 600}


def experiment(method: str = "l4", shape: Mapping[str, Any] = SHAPE, **sections: Any) -> ExperimentConfig:
    """Return an experiment with a tiny model and batches of four; ``sections`` replace whole sections."""
    defaults = {"method": method, "stream": ["mini.woz"], "model": {"from_scratch": shape}}
    return resolved(ExperimentConfig.model_validate({**defaults, "training": {"batch_size": 4}, **sections}))


def profile(**sections: Any) -> ClusterConfig:
    return ClusterConfig.model_validate(sections)


def train_for_real(config: ExperimentConfig, cluster: ClusterConfig, trace: MemoryTrace) -> int:
    """Train one student with one teacher for two steps on real tensors, traced; return the bytes of a payload."""
    sent = 0
    batch, vocabulary = batch_shape(config, cluster), cast(Any, vocabulary_of(config))
    codec = build_codec(cluster.exchange, config)
    with trace:
        trace.begin("weights")
        model = build_model(config.model, vocabulary, 0)
        students = cluster.students
        rank = Alone(size=students.shards_per_student)
        learner = Learner(0, model, vocabulary, config, get_method(config.method), rank, students.micro_batch)
        run = learner.begin_stage(0, batch.table(vocabulary, 2))
        trace.begin("training")
        for step in range(2):
            payload = codec.encode(run.forward(step), 0)
            arrived = Payload(payload.codec, {name: tensor.clone() for name, tensor in payload.tensors.items()})
            sent = payload.num_bytes
            del payload
            run.backward(step, [codec.decode(arrived)])
            del arrived
    return sent


def cpu_trace() -> MemoryTrace:
    return MemoryTrace(torch.device("cpu"))
