"""The disk space of a run directory: as many checkpoints as a run leaves at its fullest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ray_l4.config.cluster import ClusterConfig
from ray_l4.methods import resolved
from ray_l4.planning.disk import disk_need, disk_problem, free_space
from ray_l4.planning.plan import PlanRequest, make_plan
from ray_l4.planning.requirements import Estimator
from ray_l4.store import states as files
from ray_l4.store.run_directory import RunDirectory
from tests.planning.planning_fixtures import experiment
from tests.run import run_fixtures as runs

STREAM = ["mini.woz", "mini.sql", "mini.rest"]
EPOCHS = {"epochs": 5, "batch_size": 4}


@pytest.mark.parametrize(
    ("method", "keep", "evaluation", "each", "teachers"),
    [
        ("l4", "all", {}, 3, 0),
        ("l4", "all", {"when": "epoch"}, 15, 0),
        ("l4", "all", {"validation": 0.1}, 4, 0),
        ("l4", "last", {}, 2, 0),
        ("l4", 2, {"when": "epoch"}, 3, 0),
        ("l4", 99, {"when": "epoch"}, 16, 0),
        ("single-qa-lm", "last", {}, 4, 0),
        ("multi-qa", "all", {}, 1, 0),
        ("l2kd-word", "all", {}, 3, 3),
    ],
)
def test_checkpoints_at_a_time(method: str, keep: Any, evaluation: dict[str, Any], each: int, teachers: int) -> None:
    config = experiment(method, stream=STREAM, training=EPOCHS, checkpoint={"keep": keep}, evaluation=evaluation)
    need = disk_need(config, 100)
    assert (need.checkpoints, need.teachers, need.guards) == (each, teachers, 0)
    assert need.needed == 100 * (need.students * each + teachers) + need.state * need.states


def test_guards_keep_two_values_of_each_weight_and_stage() -> None:
    need = disk_need(experiment("ewc", stream=STREAM, training=EPOCHS), 100)
    assert need.guards == 2 * 3 * 100 and need.needed == 3 * 100 + need.guards + 3 * 300


@pytest.mark.parametrize(
    ("method", "checkpoint", "ranks", "models", "states"),
    [
        ("l4", {}, 1, 2, 3),
        ("l4", {"states": 1}, 1, 2, 2),
        ("l4", {"states": 5, "every_minutes": None, "every_steps": 9}, 1, 2, 6),
        ("l4", {"every_minutes": None}, 1, 2, 1),
        ("l4", {}, 4, 8, 3),
        ("finetune", {}, 1, 1, 3),
        ("single-qa", {}, 1, 3, 3),
        ("l2kd-word", {}, 1, 3, 3),
        ("retrieve", {}, 1, 1, 0),
    ],
)
def test_states_have_weights_and_two_moments_of_all_that_learn(
    method: str, checkpoint: dict[str, Any], ranks: int, models: int, states: int
) -> None:
    need = disk_need(experiment(method, stream=STREAM, training=EPOCHS, checkpoint=checkpoint), 100, ranks)
    assert (need.state, need.states) == (3 * 100 * models, states)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["l4", "single-qa"])
def test_states_take_as_much_as_predicted_in_a_run(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looked at whenever a state has been written, before older ones are removed: at the fullest."""
    seen: list[int] = []

    def look(run: RunDirectory, *arguments: Any) -> None:
        seen.append(sum(file.stat().st_size for file in (run.path / "states").rglob("*.safetensors")))
        files.discard_states(run, *arguments)

    monkeypatch.setattr("ray_l4.run.states.discard_states", look)
    config = runs.quick(method, checkpoint={"every_steps": 5})
    run, _ = runs.complete_run(config, runs.cluster("in_process"), tmp_path / "run")
    weights = max(file.stat().st_size for file in run.path.glob("checkpoints/*/*/*/model.safetensors"))
    need = disk_need(resolved(config), weights)
    # Models that do not depend on each other learn one by one in complete_run, which has room for one.
    learning = need.state // (2 if method == "single-qa" else 1)
    assert max(seen) == pytest.approx(learning * need.states, rel=0.1)


def test_a_disk_that_is_too_small_is_a_problem_with_a_remedy(tmp_path: Path) -> None:
    config = experiment(stream=STREAM, training=EPOCHS)
    free = free_space(tmp_path / "not" / "there" / "yet")
    assert free > 0
    made = make_plan(PlanRequest(config, 2**40, free_disk=1000), ClusterConfig(), Estimator())
    assert made.disk.checkpoint == 4 * made.requirements.parameters
    assert not made.fits and "disk: needs" in made.problems[0] and "checkpoint.keep: last" in made.problems[0]
    assert make_plan(PlanRequest(config, 2**40, free_disk=2**40), ClusterConfig(), Estimator()).fits
    assert disk_problem(made.disk, None, "all") == ""
    assert "checkpoint.keep" not in disk_problem(made.disk, 1, "last")
