"""What an experiment and a profile cannot do together is said before anything is started."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ray_l4.config.cluster import ClusterConfig
from ray_l4.errors import ConfigError
from ray_l4.run import execute
from ray_l4.run.preparation import prepare_run
from ray_l4.setup.exchange_check import check_exchange
from tests.run import run_fixtures as small

MEAN = {"exchange": {"transport": "collective", "codec": "mean"}}


def profile(sections: dict[str, Any]) -> ClusterConfig:
    return ClusterConfig.model_validate(sections)


@pytest.mark.parametrize(
    "changes",
    [{}, {"peers": {"count": 4}}, {"peers": {"count": 2, "topology": "ring"}}, {"method": "lamol"}],
    ids=["two", "four", "a ring of two", "nobody learns from anyone"],
)
def test_what_can_be_learned_passes(changes: dict[str, Any]) -> None:
    check_exchange(small.experiment(**changes), profile(MEAN))


@pytest.mark.parametrize(
    "changes",
    [
        {"peers": {"count": 3, "topology": "ring"}},
        {"method": "l4-released", "distillation": {"schedule": "alternate_epochs"}},
        {"method": "l2kd-word"},
        {"distillation": {"batches": "own"}},
        {"distillation": {"on_policy": 0.1}},
    ],
    ids=["ring", "in turn", "a frozen teacher", "own batches", "own answers"],
)
def test_a_mean_over_all_needs_all_to_learn_from_all(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"exchange\.codec: mean .*peers\.topology: complete.*Or use another codec"):
        check_exchange(small.experiment(**changes), profile(MEAN))


def test_batches_that_only_the_model_decides_are_checked_before_anything_is_started(tmp_path: Path) -> None:
    equal = {"layers": 1, "width": 32, "heads": 2, "positions": 96, "vocabulary": 400, "dropout": 0.0}
    config = small.experiment(model={"from_scratch": equal})
    check_exchange(config, profile(MEAN))
    with pytest.raises(ConfigError, match=r"exchange\.codec: mean .*distillation\.batches: shared"):
        prepare_run(config, profile(MEAN | {"students": {"cpus": 0.1}}), None)


@pytest.mark.parametrize("codec", ["sampled", "mean"])
def test_targets_without_a_tail_cannot_be_followed_in_reverse(codec: str) -> None:
    config = small.experiment(distillation={"direction": "reverse"})
    with pytest.raises(ConfigError, match=r"distillation\.direction: reverse"):
        check_exchange(config, profile({"exchange": {"transport": "collective", "codec": codec}}))


@pytest.mark.parametrize(
    ("cluster", "message"),
    [
        ({"students": {"shards_per_student": 9, "cpus": 0.1}}, r"9 ranks share a batch of 8 examples"),
        ({"students": {"cpus": 0.1}, "exchange": {"codec": "topk", "precision": "float16"}}, r"exchange\.precision"),
        ({"students": {"gpus": 1}, "ray": {"num_gpus": 1}}, r"2 GPU.*0 GPU"),
    ],
    ids=["shards", "precision", "too few GPUs"],
)
def test_a_run_that_cannot_be_leaves_nothing_behind(tmp_path: Path, cluster: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match=message):
        execute.run(small.experiment(), profile(cluster), tmp_path / "run", "test", Console(quiet=True))
    assert not (tmp_path / "run").exists()
