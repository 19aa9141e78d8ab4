"""What a run began with: its experiment may not change, its folders and title may."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_l4.config.experiment import ExperimentConfig
from ray_l4.errors import RunDirectoryError
from ray_l4.store.begun_with import EXPERIMENT_KEY, changed_versions, check_experiment, recorded

SECTIONS: dict[str, Any] = {
    "name": "try",
    "method": "lamol",
    "stream": [{"name": "own", "path": "/data/one", "metric": "em"}, {"name": "mini.rest"}],
    "model": {"from_scratch": {"layers": 1, "width": 32, "heads": 2}},
    "optim": {"lr": 1e-3},
}
CONFIG = Path("run/config.yaml")


def experiment(**changes: Any) -> ExperimentConfig:
    return ExperimentConfig.model_validate(SECTIONS | changes)


def manifest(begun: ExperimentConfig) -> dict[str, Any]:
    """A manifest as it is read back."""
    return json.loads(json.dumps({"command": "test", **recorded(begun)}))


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"method": "l4"}, 'method was "lamol", now "l4"'),
        ({"optim": {"lr": 0.5}}, "optim.lr was 0.001, now 0.5"),
        ({"seed": 7}, "seed was 0, now 7"),
        ({"stream": SECTIONS["stream"][:1]}, "stream was "),
        ({"stream": [SECTIONS["stream"][0], {"name": "mini.rest", "train": 9}]}, 'stream.1.train was "paper", now 9'),
        ({"model": {"from_scratch": {"layers": 2, "width": 32, "heads": 2}}}, "model.from_scratch.layers was 1, now 2"),
        ({"model": {"name": "gpt2"}}, "model.name was null"),
        ({"peers": {"init": "own"}}, "peers.init was"),
    ],
)
def test_a_change_is_refused_with_the_difference(changes: dict[str, Any], difference: str) -> None:
    with pytest.raises(RunDirectoryError) as caught:
        check_experiment(CONFIG, experiment(**changes), manifest(experiment()))
    message = str(caught.value)
    assert message.startswith("run/config.yaml: not the experiment that this run began with: ")
    assert difference in message and "undo these changes" in message


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"name": "another title"},
        {"data": {"raw": "/other/raw", "converted": "/other/converted"}},
        {"stream": [SECTIONS["stream"][0] | {"path": "/data/two"}, {"name": "mini.rest"}]},
    ],
)
def test_what_changes_no_number_may_change(changes: dict[str, Any]) -> None:
    check_experiment(CONFIG, experiment(**changes), manifest(experiment()))


def test_a_run_of_an_early_version_or_with_fewer_settings_is_not_refused() -> None:
    check_experiment(CONFIG, experiment(method="l4"), {"command": "test"})
    begun = manifest(experiment())
    del begun[EXPERIMENT_KEY]["training"]["means"], begun[EXPERIMENT_KEY]["peers"]
    check_experiment(CONFIG, experiment(), begun)


def test_a_setting_that_this_version_does_not_know_is_named_with_its_file() -> None:
    begun = manifest(experiment())
    begun[EXPERIMENT_KEY]["unknown"] = 1
    with pytest.raises(RunDirectoryError, match=r"run/manifest\.json: its experiment is not valid in this version"):
        check_experiment(CONFIG, experiment(), begun)


@given(st.floats(1e-9, 1e3), st.floats(1e-9, 1e3))
def test_numbers_survive_the_manifest_to_the_last_bit(one: float, other: float) -> None:
    begun, found = experiment(optim={"lr": one}), experiment(optim={"lr": other})
    check_experiment(CONFIG, begun, manifest(begun))
    if one != other:
        with pytest.raises(RunDirectoryError, match=r"optim\.lr was"):
            check_experiment(CONFIG, found, manifest(begun))


def test_changed_versions_are_listed() -> None:
    then, now = {"torch": "2.1", "ray": "2.6", "gone": "1"}, {"torch": "2.2", "ray": "2.6", "new": "1"}
    assert changed_versions(then, now) == ["torch 2.1, now 2.2"]
    assert changed_versions({}, now) == []
