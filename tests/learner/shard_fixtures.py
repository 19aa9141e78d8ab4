"""Students with one rank and with several, which learn the same steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from ray_l4.errors import ModelError
from ray_l4.learner.learner import Learner
from ray_l4.learner.models import state_bytes
from ray_l4.learner.peer_model import PeerModel
from ray_l4.learner.sharding import ALONE, DataParallel, FullyShard, Sharding
from ray_l4.learner.stage_run import StageRun
from tests.learner import learner_fixtures as small

LIMIT = timedelta(seconds=60)
CURRENT, REPLAYED, BATCH = 8, 3, 5
"""Two epochs of batches of 5, 5 and 1 examples: most ranks have no example of the last batch."""

SCENARIOS: Mapping[str, dict[str, Any]] = {
    "l4": {},
    "everything": {
        "distillation": {"direction": "reverse", "examples": "all", "average": "vocabulary", "weight": 900.0},
        "training": {"means": "separate", "lm_weight": 0.7, "max_grad_norm": 0.5},
        "optim": {"variant": "reference"},
    },
    "turns": {"distillation": {"schedule": "alternate_epochs"}},
    "lamol": {"method": "lamol"},
    "bfloat16": {"precision": "bfloat16"},
}
FULL = (("l4", None), ("everything", 2), ("bfloat16", None))
"""Scenarios and micro-batch sizes of fully sharded students."""
COMPILED = (("compiled", None),)
"""The same with compiled blocks."""

TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}

A, T = TypeVar("A"), TypeVar("T")


@dataclass
class Learned:
    """Observations of one rank of a student that learns a stage."""

    figures: list[dict[str, float]] = field(default_factory=list)
    """The figures of every step."""
    gradients: list[dict[str, Tensor]] = field(default_factory=list)
    """The gradients of every step, as the optimiser gets them."""
    weights: dict[str, Tensor] = field(default_factory=dict)
    """The final weights."""
    saved: bytes = b""
    """The final weights as bytes, as in a checkpoint."""


@dataclass
class FullyLearned:
    """Observations of the first rank of fully sharded students."""

    learned: list[Learned]
    share: float
    """The fraction of the first student's weights and moments that the rank holds."""
    restored: bytes
    """The weights of a new student that loaded those of the first one."""
    refusal: str
    """The new student's error message for weights of another shape."""


def begun(scenario: str, shardings: Sequence[Sharding] = (), micro_batch: int | None = None) -> list[StageRun]:
    """Begin the second stage of a scenario's students, each on one of its ranks."""
    compiled = scenario == "compiled" and bool(shardings)
    more = {name: value for name, value in _settings(scenario).items() if name != "precision"}
    shape = {"layers": 2, "width": 32, "heads": 2, "positions": 64, "dropout": 0.0}
    config = small.experiment(
        model={
            "from_scratch": shape,
            "precision": _settings(scenario).get("precision", "float32"),
            "compile": compiled,
        },
        training={"epochs": 2, "batch_size": BATCH} | more.pop("training", {}),
        optim={"variant": "torch", "lr": 1e-3, "eps": 1e-4} | more.pop("optim", {}),
        peers={"init": "own"},
        **more,
    )
    tok = small.tokenizer()
    # Change the weights before they are sharded.
    whole = small.unlike(small.peers(config, tok, config.method))
    learners = [
        Learner(own.peer, own.model, tok, config, own.method, sharding, micro_batch)
        for own, sharding in zip(whole, list(shardings)[: len(whole)] or [ALONE] * len(whole), strict=True)
    ]
    return small.begun(learners, small.tokens(tok, CURRENT, REPLAYED))


def _settings(scenario: str) -> dict[str, Any]:
    return SCENARIOS.get(scenario, SCENARIOS["l4"])


def learn(runs: Sequence[StageRun]) -> list[Learned]:
    """Learn all steps of the stage, simultaneously or in turn."""
    learned = [Learned() for _ in runs]
    for run, own in zip(runs, learned, strict=True):
        run.optimizer.register_step_pre_hook(_noting(run.learner, own))
    steps = range(runs[0].num_steps)
    in_turn = runs[0].learner.experiment.distillation.schedule == "alternate_epochs"
    for together in [{0: steps}, {1: steps}] if in_turn else [dict.fromkeys(range(len(runs)), steps)]:
        for figures in small.train(runs, together):
            for peer, of_peer in figures.items():
                learned[peer].figures.append(of_peer)
    for run, own in zip(runs, learned, strict=True):
        own.weights = {name: whole(tensor).clone() for name, tensor in run.learner.model.state_dict().items()}
        own.saved = run.learner.weights().tobytes()
    return learned


@cache
def alone(scenario: str) -> list[Learned]:
    """Learn on a single rank, each batch at once."""
    return learn(begun(scenario))


def assert_same(found: list[Learned], scenario: str) -> None:
    """Compare losses, norms, the gradients of every step and the final weights, relative to their norms."""
    tolerance = TOLERANCE[_settings(scenario).get("precision", "float32")]
    expected = alone(scenario)
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        assert len(theirs.figures) == len(theirs.gradients) == 6
        for one, other in zip(mine.figures, theirs.figures, strict=True):
            assert one == pytest.approx(other, rel=tolerance, abs=tolerance)
        for one, other in zip(mine.gradients, theirs.gradients, strict=True):
            assert_close(one, other, tolerance)
        assert_close(mine.weights, theirs.weights, tolerance)


def assert_close(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float) -> None:
    assert one.keys() == other.keys()
    largest = max(float(tensor.norm()) for tensor in other.values())
    for name, expected in other.items():
        allowed = tolerance * max(float(expected.norm()), 1e-2 * largest)
        assert float((one[name] - expected).norm()) <= allowed, name


def whole(tensor: Tensor) -> Tensor:
    """Gather a tensor of which every rank holds a slice."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _noting(learner: PeerModel, learned: Learned) -> Callable[..., None]:
    def note(*arguments: Any) -> None:
        named = learner.model.named_parameters()
        learned.gradients.append({name: whole(own.grad).clone() for name, own in named if own.grad is not None})

    return note


def groups(size: int) -> list[list[Sharding]]:
    """Return the data-parallel shardings of ``size`` ranks, one per peer; ranks are threads of this process."""
    store = dist.HashStore()

    def of_rank(rank: int) -> list[Sharding]:
        return [DataParallel(rank, size, _gloo(store, f"peer-{peer}", rank, size)) for peer in range(2)]

    return at_once(of_rank, range(size))


def at_once(work: Callable[[A], T], items: Sequence[A]) -> list[T]:
    """Map ``work`` over ``items`` on threads, for ranks that wait for each other."""
    with ThreadPoolExecutor(len(items)) as pool:
        return list(pool.map(work, items))


def _gloo(store: dist.Store, name: str, rank: int, size: int) -> Any:
    options = dist.ProcessGroupGloo._Options()
    options._timeout = LIMIT
    options._devices = [dist.ProcessGroupGloo.create_device(hostname="127.0.0.1")]
    return dist.ProcessGroupGloo(dist.PrefixStore(name, store), rank, size, options)


def fully_sharded(rank: int, size: int, folder: Path, scenarios: Sequence[tuple[str, int | None]] = FULL) -> None:
    """Run a rank in its own process for all ``scenarios``; the first rank writes its observations."""
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=LIMIT)
    shardings = [FullyShard(init_device_mesh("cpu", (size,), mesh_dim_names=("shard",)))] * 2
    for scenario, micro_batch in scenarios:
        runs = begun(scenario, shardings, micro_batch)
        learned = learn(runs)
        fresh = begun(scenario, shardings, micro_batch)[0].learner
        fresh.load(np.frombuffer(state_bytes(learned[0].weights), dtype=np.uint8))
        restored = fresh.weights().tobytes()
        cut_off = {name: tensor[:1] for name, tensor in learned[0].weights.items()}
        try:
            fresh.load(state_bytes(cut_off))
            refusal = ""
        except ModelError as error:
            refusal = str(error)
        if rank == 0:
            done = FullyLearned(learned, _share_held(runs[0]), restored, refusal)
            torch.save(done, folder / f"{scenario}-{micro_batch}.pt")
    dist.destroy_process_group()


def _share_held(run: StageRun) -> float:
    """Return the fraction of all weights and moments that this process holds."""
    tensors = [
        tensor
        for parameter in run.learner.model.parameters()
        for tensor in (parameter, run.optimizer.state[parameter]["exp_avg"])
    ]
    held = sum(own.to_local().numel() if isinstance(own, DTensor) else own.numel() for own in tensors)
    return held / sum(own.numel() for own in tensors)
