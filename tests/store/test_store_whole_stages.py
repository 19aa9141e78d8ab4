"""Which finished stages of a run can be built on, and what is left after going back to the last one that is whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from ray_l4.config.cluster import ClusterConfig
from ray_l4.config.experiment import ExperimentConfig
from ray_l4.store.records import write_checkpoint, write_guard, write_replay, write_score, write_steps
from ray_l4.store.run_directory import Cell, RunDirectory, RunState
from ray_l4.store.sealed import write_record
from ray_l4.store.states import Learning, Position, write_state
from ray_l4.store.whole_stages import Needed, return_to, whole_stages

WEIGHTS = np.frombuffer(save({"a": np.arange(40, dtype=np.float32)}), np.uint8)
EXPERIMENT = ExperimentConfig.model_validate(
    {
        "name": "x",
        "stream": [{"name": name} for name in ("mini.woz", "mini.sql", "mini.rest")],
        "model": {"name": "gpt2"},
    }
)
STAGES = 3
NEEDED = Needed([["a"]] * STAGES, students=(0, 1), epochs=[2] * STAGES, validated=True, guarded=True, independent=False)


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A run of three stages and two students, which is in the middle of a fourth."""
    found = RunDirectory.create(tmp_path / "run", EXPERIMENT, ClusterConfig(), {})
    (tmp_path / "run/tokenizer").mkdir()
    for stage in range(STAGES):
        write_record(found.validation(stage), {"examples": 1, "epoch": 1, "means": [1.0]})
        write_steps(found, stage, 1, [{"stage": stage, "epoch": 1, "step": step, "student": 0} for step in range(2)])
        write_replay(found, stage, [{"index": 0, "student": 0, "task": "a", "valid": True, "ids": [1]}])
        for student in (0, 1):
            write_checkpoint(found.checkpoint(stage, 1, student), WEIGHTS, {"n": 1}, tmp_path / "run/tokenizer")
            write_guard(found, stage, student, WEIGHTS)
            write_score(found, Cell(stage, 1, student, "a"), {"headline": "em", "values": {"em": 1.0}}, {})
    write_replay(found, STAGES, [{"index": 0, "student": 0, "task": "a", "valid": True, "ids": [1]}])
    write_state(found, Position(1, [Learning(0, 0, STAGES, 4)]), [], {0: [WEIGHTS]})
    found.save_state(RunState(stages_done=STAGES))
    write_record(found.path / "summary.json", {})
    return found


def flip(path: Path) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    return path


def remove(path: Path) -> Path:
    path.unlink()
    return path


def weights(run: RunDirectory, stage: int, student: int = 1) -> Path:
    return run.checkpoint(stage, 1, student) / "model.safetensors"


DAMAGES: dict[str, Callable[[RunDirectory], list[Path]]] = {
    "3: nothing": lambda run: [],
    "3: an earlier stage, whose scores are there": lambda run: [flip(weights(run, 0))],
    "2: the last stage": lambda run: [flip(weights(run, 2))],
    "2: a file is missing": lambda run: [remove(weights(run, 2))],
    "2: the configuration": lambda run: [flip(run.checkpoint(2, 1, 0) / "config.json")],
    "2: a guard": lambda run: [flip(run.guard(2, 1))],
    "2: a guard is missing": lambda run: [remove(run.guard(2, 0))],
    "2: the choice of the epoch": lambda run: [remove(run.validation(2))],
    "1: the last two": lambda run: [flip(weights(run, 2)), flip(weights(run, 1))],
    "0: all": lambda run: [flip(weights(run, stage)) for stage in (2, 1, 0)],
    "1: one that lacks a score": lambda run: [
        flip(weights(run, 1)),
        remove(run.path / "scores" / f"{Cell(1, 1, 1, 'a').name}.json"),
    ],
}


@pytest.mark.parametrize("name", DAMAGES)
def test_the_newest_whole_stage_is_found(name: str, run: RunDirectory) -> None:
    damaged = DAMAGES[name](run)
    found = whole_stages(run, NEEDED, STAGES)
    assert found.stages == int(name[0])
    assert (found.damage is None) == (found.stages == STAGES)
    if found.damage is not None:
        assert found.damage.startswith(str(damaged[0]))


def test_of_models_side_by_side_all_are_needed(run: RunDirectory) -> None:
    independent = replace(NEEDED, independent=True)
    assert whole_stages(run, independent, STAGES).stages == STAGES
    flip(weights(run, 0))
    assert whole_stages(run, independent, STAGES).stages == 0
    assert whole_stages(run, replace(independent, students=(0,)), STAGES).stages == STAGES, "of a lost student, nothing"


def test_nothing_of_later_stages_is_left(run: RunDirectory) -> None:
    flip(weights(run, 1))
    return_to(run, 1, lambda: run.save_state(RunState(stages_done=1)))
    assert run.state().stages_done == 1
    left = {path.relative_to(run.path).as_posix() for path in run.path.rglob("*") if "stage-" in path.name}
    assert {path for path in left if not path.startswith(("checkpoints", "replay"))} == {
        "steps/stage-0.epoch-1.parquet",
        "validation/stage-0.json",
        *(f"{folder}/stage-0.epoch-1.student-{n}.a.{kind}" for n in (0, 1) for folder, kind in KINDS),
        *(f"guards/stage-0.student-{n}.safetensors" for n in (0, 1)),
    }
    assert {path for path in left if path.startswith("replay")} == {"replay/stage-0.parquet", "replay/stage-1.parquet"}
    assert [path.name for path in (run.path / "checkpoints").iterdir()] == ["stage-0"]
    assert not (run.path / "summary.json").exists()
    assert "stage-1" not in (run.path / "guards/SHA256SUMS").read_text()
    assert whole_stages(run, NEEDED, 1).damage is None


KINDS = (("scores", "json"), ("predictions", "parquet"))


class Killed(BaseException):
    """The process ends."""


def test_going_back_that_was_cut_off_is_done_again(run: RunDirectory) -> None:
    def killed() -> None:
        raise Killed

    flip(weights(run, 2))
    with pytest.raises(Killed):
        return_to(run, 2, killed)
    assert whole_stages(run, NEEDED, run.state().stages_done).stages == 2, "the damage is found again"
