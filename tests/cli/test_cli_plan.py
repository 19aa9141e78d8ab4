"""``ray-l4 plan`` from the command line to its output."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner

from ray_l4.cli.main import app
from ray_l4.errors import ConfigError
from tests.cli.cli_fixtures import REPOSITORY, write_experiment

LAPTOP = {"ray": {"num_cpus": 2}}
GPUS = {"students": {"gpus": 1}, "evaluators": {"count": 1, "gpus": 1}}


def plan(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["plan", *map(str, arguments)], env={"COLUMNS": "80"})


@pytest.fixture
def profiles(tmp_path: Path) -> Path:
    folder = tmp_path / "profiles"
    folder.mkdir()
    for name, sections in {"laptop": LAPTOP, "gpus": GPUS}.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"name": name, **sections}))
    return folder


def test_a_run_that_fits(tmp_path: Path, profiles: Path) -> None:
    result = plan(write_experiment(tmp_path), "--cluster", profiles / "laptop.yaml")
    assert result.exit_code == 0, result.output
    assert "fits on laptop" in result.output and "activations" in result.output


def test_a_run_that_does_not_fit_exits_1_and_names_what_does(tmp_path: Path, profiles: Path) -> None:
    """A device of 3 GiB is the whole machine in one profile, and one of two GPUs in the other."""
    experiment = write_experiment(tmp_path, training={"batch_size": 1})
    result = plan(experiment, "--cluster", profiles / "laptop.yaml", "--device-memory", "3GiB", "--json")
    assert result.exit_code == 1
    value: dict[str, Any] = json.loads(result.stdout)
    assert value["fits"] is False
    assert {Path(name).name: why for name, why in value["advice"]["profiles"].items()} == {"gpus.yaml": ""}
    fitting = plan(experiment, "--cluster", profiles / "gpus.yaml", "--device-memory", "3GiB")
    assert fitting.exit_code == 0 and "fits on gpus" in fitting.output


def test_every_row_of_a_protocol_is_planned_and_the_largest_shown(tmp_path: Path, profiles: Path) -> None:
    small, wide = {"method": "lamol"}, {"method": "l4", "model.from_scratch.width": 64}
    sweep = {"variants": {"small": small, "wide": wide}, "orders": "all", "seeds": 3}
    protocol = write_experiment(tmp_path, sweep=sweep)
    common = (protocol, "--cluster", profiles / "laptop.yaml", "--tokens", 40)
    value = json.loads(plan(*common, "--json").stdout)
    assert value["row"] == "wide" and value["fits"] is True
    assert set(value["rows"]) == {"small", "wide"}
    assert value["rows"]["small"]["needed"] < value["rows"]["wide"]["needed"]
    assert value["rows"]["wide"]["needed"] == max(device["needed"] for device in value["devices"])
    shown = plan(*common)
    assert "Of 2 rows, wide needs most" in shown.output and "fits on laptop" in shown.output


def test_overlays_and_names_of_profiles(tmp_path: Path) -> None:
    overlay = tmp_path / "wide.yaml"
    overlay.write_text("model: {from_scratch: {width: 64}}\n")
    common = (write_experiment(tmp_path), "--cluster", "in_process", "--tokens", 40, "--json")
    narrow, wide = (json.loads(plan(*common, *more).stdout) for more in ((), ("--with", overlay)))
    assert narrow["profile"] == wide["profile"] == "in_process"
    assert narrow["parameters"] < wide["parameters"]


def test_settings_of_both_files_can_be_changed(tmp_path: Path, profiles: Path) -> None:
    changes = ("--set", "training.batch_size=2", "--set", "cluster.exchange.precision=float16", "--json")
    common = (write_experiment(tmp_path), "--cluster", profiles / "laptop.yaml", "--tokens", 40, "--answer", 8)
    before, after = (json.loads(plan(*common, *more).stdout) for more in (("--json",), changes))
    assert (before["batch"]["examples"], after["batch"]["examples"]) == (8, 2)
    assert after["batch"]["length"] == 40 and after["batch"]["worst_case"] is False
    assert before["bytes_per_student_step"] == 8 * after["bytes_per_student_step"], "a quarter of the batch, in half"


def test_the_longest_sequence_in_the_data_decides(tmp_path: Path, profiles: Path) -> None:
    """Not the positions of the model; progress is on the other stream, in plain lines where there is no terminal."""
    shape = {"layers": 1, "width": 32, "heads": 2, "positions": 20_000, "vocabulary": 400}
    path = write_experiment(tmp_path, model={"from_scratch": shape})
    result = plan(path, "--cluster", profiles / "laptop.yaml", "--device-memory", "80GiB", "--json")
    batch = json.loads(result.stdout)["batch"]
    assert 10 < batch["length"] < 96 and batch["of_data"] and batch["answer"] < batch["length"]
    assert "reading and tokenising" in result.stderr and "simulating a step of peer 0" in result.stderr


def test_without_data_the_positions_decide_and_the_plan_says_so(tmp_path: Path, profiles: Path) -> None:
    stream = [{"name": "mine", "path": "nowhere", "metric": "em"}]
    path = write_experiment(tmp_path, stream=stream)
    result = plan(path, "--cluster", profiles / "laptop.yaml", "--device-memory", "80GiB", "--json")
    batch = json.loads(result.stdout)["batch"]
    assert batch["length"] == 96 and not batch["of_data"]
    assert "is assumed, since no data can be read: Task 'mine': no folder" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [("--device-memory", "a lot"), ("--tokens", 4000), ("--set", "training.batchsize=2")],
    ids=["memory", "tokens", "key"],
)
def test_mistakes(tmp_path: Path, arguments: tuple[object, ...]) -> None:
    result = plan(write_experiment(tmp_path), *arguments)
    assert isinstance(result.exception, ConfigError)


@pytest.mark.parametrize("path", sorted((REPOSITORY / "cluster_configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_profile_of_the_project_can_be_planned_from_a_laptop(tmp_path: Path, path: Path) -> None:
    result = plan(write_experiment(tmp_path), "--cluster", path, "--device-memory", "80GiB", "--json")
    assert result.exit_code == 0, result.output
    assert all(device["fits"] for device in json.loads(result.stdout)["devices"])
