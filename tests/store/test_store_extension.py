"""The record of an extension, and what is left of one that was cut off."""

from __future__ import annotations

from pathlib import Path

import pytest

from ray_l4.config.cluster import ClusterConfig
from ray_l4.config.experiment import ExperimentConfig
from ray_l4.store.atomic import write_text
from ray_l4.store.begun_with import check_experiment, recorded
from ray_l4.store.extension import finish_extension, record_extension
from ray_l4.store.run_directory import RunDirectory
from ray_l4.store.sealed import write_record


def experiment(*tasks: str) -> ExperimentConfig:
    return ExperimentConfig.model_validate(
        {"stream": [{"name": task} for task in tasks], "model": {"name": "gpt2"}, "seed": 7}
    )


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    begun = experiment("mini.woz")
    run = RunDirectory.create(tmp_path / "run", begun, ClusterConfig(), {"command": "x", **recorded(begun)})
    write_record(run.path / "summary.json", {})
    write_text(run.path / "report.md", "done")
    return run


def test_a_run_that_was_extended_has_not_finished_and_is_that_of_its_manifest(run: RunDirectory) -> None:
    record_extension(run, experiment("mini.woz", "mini.sql"), {"vocabulary": 5})
    assert not run.has_finished() and not (run.path / "report.md").exists()
    assert [item.name for item in run.experiment().stream] == ["mini.woz", "mini.sql"]
    assert run.manifest()["vocabulary"] == 5 and run.manifest()["command"] == "x"
    check_experiment(run.path / "config.yaml", run.experiment(), run.manifest())
    before = (run.path / "config.yaml").read_bytes()
    finish_extension(run)
    assert (run.path / "config.yaml").read_bytes() == before, "nothing is left to do"


def test_an_extension_that_was_cut_off_before_its_last_file_is_finished(run: RunDirectory) -> None:
    write_record(
        run.path / "manifest.json", {**run.manifest(), **recorded(experiment("mini.woz", "mini.sql", "mini.woz"))}
    )
    finish_extension(run)
    found = run.experiment()
    assert [item.name for item in found.stream] == ["mini.woz", "mini.sql", "mini.woz"] and found.seed == 7
    check_experiment(run.path / "config.yaml", found, run.manifest())


def test_a_stream_that_a_person_changed_is_left_for_the_check_that_refuses_it(run: RunDirectory) -> None:
    write_record(run.path / "manifest.json", {**run.manifest(), **recorded(experiment("mini.sql", "mini.woz"))})
    finish_extension(run)
    assert [item.name for item in run.experiment().stream] == ["mini.woz"]
