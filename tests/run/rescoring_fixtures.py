"""A finished run with stored answers, whose scores are those of another definition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ray_l4.config.cluster import ClusterConfig
from ray_l4.config.experiment import ExperimentConfig
from ray_l4.metrics.registry import Item
from ray_l4.report.summary import summarise
from ray_l4.store.atomic import write_json, write_text
from ray_l4.store.records import write_score
from ray_l4.store.run_directory import Cell, RunDirectory, RunState
from ray_l4.tasks.registry import load

STREAM = [
    {"name": "mini.woz", "test": 6},
    {"name": "mini.sql", "test": 5},
    {"name": "own", "path": "own", "metric": "avg_rouge"},
]
MANIFEST = {"command": "ray-l4 run old.yaml", "versions": {}, "platform": "", "python": ""}
OWN = [("a red car", ["a red car", "the old blue bike stops"]), ("no", ["yes", "no"]), ("", ["a"])]

METRIC_OF = {"mini.woz": "joint_goal_em", "mini.sql": "lfem", "own": "avg_rouge"}


def finished(path: Path, **settings: Any) -> RunDirectory:
    """Write a finished run of one student whose scores are all wrong, as if computed with another definition."""
    config = ExperimentConfig.model_validate(
        {
            "name": "old",
            "method": "finetune",
            "stream": STREAM,
            "model": {"from_scratch": {}},
            "training": {"epochs": 1},
        }
        | settings
    )
    run = RunDirectory.create(
        path, config, ClusterConfig(), {"command": "ray-l4 run old.yaml", "versions": {}, "platform": "", "python": ""}
    )
    for stage in range(len(STREAM)):
        for task in config.stream:
            items = answers(config, task.name)
            record = {"stage": stage, "epoch": 1, "student": 0, "task": task.name, "headline": "wrong"}
            write_score(
                run,
                Cell(stage, 1, 0, task.name),
                {**record, "values": {"wrong": 12.5}, "examples": len(items)},
                {
                    "sample_id": [item.sample_id for item in items],
                    "prediction": [item.prediction for item in items],
                    "references": [list(item.references) for item in items],
                    "note": [f"kept {index}" for index in range(len(items))],
                    "score": [1.0] * len(items),
                },
            )
    run.save_state(RunState(stages_done=3))
    write_json(run.path / "summary.json", summarise(run))
    write_text(run.path / "report.md", "old")
    return run


def answers(config: ExperimentConfig, task: str) -> list[Item]:
    """Return a task's items; the last answer of built-in tasks is wrong."""
    if task == "own":
        return [Item(prediction, tuple(references), str(i)) for i, (prediction, references) in enumerate(OWN)]
    [own] = [wanted for wanted in config.stream if wanted.name == task]
    rows = load(own, "test", config.data).slice(0, config.evaluation.limit).to_pylist()
    items = [Item(row["answer"], tuple(row["references"]), row["sample_id"], row["meta"]) for row in rows]
    return [*items[:-1], Item("nonsense", items[-1].references, items[-1].sample_id, items[-1].meta)]
