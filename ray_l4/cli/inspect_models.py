"""``evaluate``, ``generate`` and ``merge``: work on one checkpoint in this process, without Ray."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ray_l4.cli.options import RawOption

ModelArgument = Annotated[
    Path, typer.Argument(metavar="MODEL", help="Folder of a checkpoint (checkpoints/.../student-0).")
]
TaskOption = Annotated[str, typer.Option("--task", help="Name of a built-in task (ray-l4 data list) or of your own.")]


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command()(evaluate)
    app.command()(generate)
    app.command()(merge)


def evaluate(
    model: ModelArgument,
    task: TaskOption,
    raw: RawOption = None,
    path: Annotated[Path | None, typer.Option("--path", help="Folder of your own data for the task.")] = None,
    metric: Annotated[str | None, typer.Option("--metric", help="Metric of your own task.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Score at most this many examples.")] = None,
    top_k: Annotated[
        int, typer.Option(min=1, help="1 decodes greedily; 20 samples as the reference implementations do.")
    ] = 1,
    seed: Annotated[int, typer.Option(help="Seed of sampling.")] = 0,
    show: Annotated[int, typer.Option(min=0, help="Print this many predictions with their references.")] = 0,
) -> None:
    """Score a checkpoint on a task's test set and print one JSON object."""
    from ray_l4.config.experiment import EvaluationConfig, TaskConfig
    from ray_l4.config.loading import data_config
    from ray_l4.learner.inspection import evaluate_folder

    wanted = TaskConfig(name=task, path=path, metric=metric, train="all")
    decoding = EvaluationConfig(limit=limit, top_k=top_k)
    scored, tests = evaluate_folder(model, wanted, data_config(raw), decoding, seed)
    for item, prediction in list(zip(tests.items, scored.predictions, strict=True))[:show]:
        typer.echo(
            f"{item.sample_id}\n  prediction: {prediction}\n  reference:  {' | '.join(item.references)}", err=True
        )
    typer.echo(json.dumps({"model": str(model), "task": task, "examples": len(tests.items), **scored.values}))


def generate(
    model: ModelArgument,
    task: TaskOption,
    n: Annotated[int, typer.Option("-n", min=1, help="Number of pseudo-examples.")] = 10,
    top_k: Annotated[int, typer.Option(min=1, help="Sample from this many most likely tokens.")] = 20,
    temperature: Annotated[float, typer.Option(min=0.01, help="Temperature of sampling.")] = 1.0,
    max_length: Annotated[
        int | None, typer.Option(min=2, help="Maximum length in tokens; the model's limit if not given.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of sampling.")] = 0,
) -> None:
    """Print pseudo-examples of a task that a checkpoint has learned, one JSON object per line."""
    from ray_l4.config.experiment import ReplayConfig
    from ray_l4.learner.inspection import generate_from_folder

    sampling = ReplayConfig(top_k=top_k, temperature=temperature, max_length=max_length)
    for example in generate_from_folder(model, task, n, sampling, seed):
        typer.echo(json.dumps(example, ensure_ascii=False))


def merge(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="Folder of a checkpoint with adapters (model.lora).")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New folder for the merged model.")],
) -> None:
    """Merge the adapters of a checkpoint into their model.

    The result is an ordinary model folder that loads without peft.
    """
    from ray_l4.learner.inspection import merge_folder

    merge_folder(checkpoint, out)
    typer.echo(f"wrote {out}")
