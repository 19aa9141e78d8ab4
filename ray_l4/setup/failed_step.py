"""A failed step, read from a run directory and repeated."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from safetensors import SafetensorError, safe_open

from ray_l4.errors import ConfigError, RunDirectoryError, first_line
from ray_l4.exchange.codecs import Payload, build_codec
from ray_l4.learner.initial_model import initial_model
from ray_l4.learner.learner import Learner
from ray_l4.learner.models import pick_device
from ray_l4.learner.repeated_step import Finding, RepeatedStep
from ray_l4.methods import get_method, peer_experiment
from ray_l4.methods.copying import uncompiled
from ray_l4.setup.inspected import check_trust
from ray_l4.store.failed_steps import BATCH, GUARD, MEMORY, TARGETS, WHY, StepPlace
from ray_l4.store.records import read_weights, undamaged
from ray_l4.store.run_directory import RunDirectory, read_json
from ray_l4.store.tables import read_table
from ray_l4.store.weight_files import damaged_file
from ray_l4.text.tokenizer import TaskTokenizer


@dataclass(frozen=True)
class Repeated:
    """A failed step and what repeating it showed."""

    why: Mapping[str, Any]
    batch: pa.Table
    tokenizer: TaskTokenizer
    finding: Finding


def repeat(run: RunDirectory, place: StepPlace, trusts_code: bool = False) -> Repeated:
    """Repeat a failed step in this process, with the weights, batch and teachers' predictions that it had.

    ``trusts_code``: whether code that comes with the model may run. Raises ConfigError if its student had several
    ranks, ModelError if code would have to run and may not, RunDirectoryError if a file is missing or damaged.
    """
    folder = place.folder(run)
    damaged = damaged_file(folder)
    if damaged is not None:
        raise RunDirectoryError(f"{damaged}, so the step cannot be repeated. Restore it from a copy.")
    why = read_json(folder / WHY)
    if why["ranks"] != 1:
        raise ConfigError(
            f"{folder}: student {place.student} had {why['ranks']} ranks (students.shards_per_student); only a step of "
            "a student with one rank can be repeated. Its batch and weights are in that folder."
        )
    experiment, cluster = run.experiment(), run.cluster()
    check_trust(experiment, str(run.path), trusts_code)
    if cluster.students.threads is not None:
        torch.set_num_threads(cluster.students.threads)  # the order of sums depends on it
    device = pick_device(cluster.students.gpus)
    tokenizer = TaskTokenizer.load(folder)
    own = uncompiled(peer_experiment(experiment, place.student))  # numbers inside compiled blocks cannot be seen
    model = initial_model(experiment, place.student, tokenizer).to(device)
    method = get_method(experiment.method)
    learner = Learner(place.student, model, tokenizer, own, method, micro_batch=cluster.students.micro_batch)
    learner.load(read_weights(folder))
    if learner.guard is not None and (folder / GUARD).is_file():
        learner.guard.restore(undamaged(folder / GUARD), device)
    codec = build_codec(cluster.exchange, own)
    try:
        batch, memory = _rows(folder / BATCH), _rows(folder / MEMORY)
        if batch is None:
            raise RunDirectoryError(f"{folder / BATCH}: is missing, so the step cannot be repeated.")
        with safe_open(folder / TARGETS, "pt") as file:
            codecs = json.loads(file.metadata()["codecs"])
            tensors = [
                {name.partition("/")[2]: file.get_tensor(name) for name in file.keys() if name.startswith(f"{i}/")}  # noqa: SIM118
                for i in range(len(codecs))
            ]
    except (OSError, SafetensorError, pa.ArrowException) as error:
        raise RunDirectoryError(f"{folder}: cannot be read ({first_line(error)})") from error
    payloads = [
        Payload(name, {key: tensor.to(device) for key, tensor in sent.items()})
        for name, sent in zip(codecs, tensors, strict=True)
    ]
    step = RepeatedStep(learner, place.stage, place.step, batch, memory)
    return Repeated(why, batch, tokenizer, step.repeat([codec.decode(payload) for payload in payloads]))


def _rows(path: Path) -> pa.Table | None:
    table = read_table(path, (), optional=None)
    return None if table is None else table.combine_chunks()
