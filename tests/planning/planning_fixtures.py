"""Small experiments to plan for, and the training that a rehearsal simulates."""

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
from ray_l4.planning.memory_trace import Ledger
from ray_l4.planning.meta_models import vocabulary

SHAPE: Mapping[str, Any] = {"layers": 1, "width": 64, "heads": 4, "positions": 48, "vocabulary": 600}


def experiment(method: str = "l4", shape: Mapping[str, Any] = SHAPE, **sections: Any) -> ExperimentConfig:
    """Build an experiment of a tiny model and batches of four; ``sections`` replace whole ones."""
    own = {"method": method, "stream": ["mini.woz"], "model": {"from_scratch": shape}, "training": {"batch_size": 4}}
    return resolved(ExperimentConfig.model_validate(own | sections))


def profile(**sections: Any) -> ClusterConfig:
    return ClusterConfig.model_validate(sections)


def train_for_real(config: ExperimentConfig, cluster: ClusterConfig, ledger: Ledger) -> int:
    """Train one student with one teacher for two steps, while ``ledger`` counts tensors; returns a payload's bytes."""
    sent = 0
    shape, tokens = batch_shape(config, cluster), cast(Any, vocabulary(config))
    codec = build_codec(cluster.exchange, config)
    with ledger:
        ledger.begin("weights")
        model = build_model(config.model, tokens, 0)
        students = cluster.students
        ranks = Alone(size=students.shards_per_student)
        learner = Learner(0, model, tokens, config, get_method(config.method), ranks, students.micro_batch)
        run = learner.begin_stage(0, shape.table(tokens, 2))
        ledger.begin("training")
        for step in range(2):
            payload = codec.encode(run.forward(step), 0)
            arrived = Payload(payload.codec, {name: own.clone() for name, own in payload.tensors.items()})
            sent = payload.num_bytes
            del payload
            run.backward(step, [codec.decode(arrived)])
            del arrived
    return sent


def cpu_ledger() -> Ledger:
    return Ledger(torch.device("cpu"))
