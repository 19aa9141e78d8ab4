"""Stages that are learned from the inbox of a run: corrections of an old task, and a new one."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from ray_l4.run import execute
from ray_l4.serve.overview import overview
from ray_l4.store.inbox.assignments import pending, take, waiting
from ray_l4.store.inbox.example import Example
from ray_l4.store.inbox.inbox import Inbox
from ray_l4.store.run_directory import RunDirectory
from ray_l4.tasks.inbox_tasks import add_task, stage_task
from tests.run import run_fixtures as small

OLD, NEW = "mini.rest", "opening hours"
IN_PROCESS = small.cluster("in_process")
SILENT = Console(quiet=True)


def learn(run: RunDirectory, tasks: list[str]) -> int:
    """Learn what waits of these tasks; returns the number of stages."""
    found = take(run, tasks)
    items = [stage_task(run, run.experiment(), assignment) for assignment in found]
    execute.extend(run, items, IN_PROCESS, "ray-l4 live", SILENT)
    return len(found)


@pytest.mark.slow
def test_corrections_and_a_new_task_are_learned_once_from_the_inbox(tmp_path: Path) -> None:
    config = small.quick("lamol", training={"epochs": 1})
    execute.run(config, IN_PROCESS, tmp_path / "run", "ray-l4 run", SILENT)
    run = RunDirectory(tmp_path / "run")
    box = Inbox(run.path)
    add_task(run, run.experiment(), NEW, "nf1", "when is it open ?")
    box.add(OLD, [Example(f"name: place {number}", "what is it ?", ("fine",), "bad") for number in range(6)])
    box.add(NEW, [Example(f"shop {number}", "when is it open ?", ("9 to 5",)) for number in range(10)])
    assert learn(run, [OLD, NEW]) == 2
    assert pending(run) == []
    assert [waiting(run.path, task).examples for task in (OLD, NEW)] == [0, 0]
    box.add(NEW, [Example("another shop", "when is it open ?", ("never",))])
    assert learn(run, [OLD, NEW]) == 1
    examples = run.manifest()["training_examples"]
    assert [examples[name] for name in ("mini.rest (2)", NEW, f"{NEW} (2)")] == [6, 8, 1]
    assert run.summary()["stages"] == [OLD, "mini.woz", "mini.rest (2)", NEW, f"{NEW} (2)"]
    found = overview(run)
    assert [stage.tasks for stage in found.stages] == [[OLD], ["mini.woz"], [OLD], [NEW], [NEW]]
    assert [(task.name, task.stages, task.is_new, task.metric) for task in found.tasks] == [
        (OLD, [0, 2], False, "avg_rouge"),
        ("mini.woz", [1], False, "joint_goal_em"),
        (NEW, [3, 4], False, "nf1"),
    ]
    assert all(task.score is not None for task in found.tasks)
    assert found.average is not None
    assert found.forgetting is not None
