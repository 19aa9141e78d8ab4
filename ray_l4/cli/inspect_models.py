"""``generate`` and ``merge``: work on one checkpoint in this process, without Ray."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ray_l4.cli.model_options import (
    DeviceOption,
    EpochOption,
    ExperimentOption,
    ModelArgument,
    SeedOption,
    SettingOption,
    StageOption,
    StudentOption,
    TaskOption,
    TrustOption,
    check_device,
    given,
    sections,
)


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command()(generate)
    app.command()(merge)


def generate(
    model: ModelArgument,
    task: TaskOption = None,
    n: Annotated[int, typer.Option("-n", min=1, help="Number of pseudo-examples.")] = 10,
    student: StudentOption = None,
    stage: StageOption = None,
    epoch: EpochOption = None,
    experiment: ExperimentOption = None,
    set_: SettingOption = None,
    top_k: Annotated[
        int | None, typer.Option(min=1, help="Sample from this many most likely tokens; as the run if not given.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0.01, help="Temperature of sampling; as the run if not given.")
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(min=2, help="Maximum length in tokens; as the run if not given.")
    ] = None,
    seed: SeedOption = None,
    trust_custom_code: TrustOption = False,
    device: DeviceOption = "auto",
) -> None:
    """Print pseudo-examples of a task that a checkpoint has learned, one JSON object per line.

    They are sampled as the checkpoint's run samples them for replay.
    """
    from ray_l4.setup.inspected import Settings, one_inspected
    from ray_l4.store.checkpoints import Wanted

    check_device(device)
    sampling = given(top_k=top_k, temperature=temperature, max_length=max_length)
    settings = Settings(
        wanted=Wanted(stage, epoch, student),
        tasks=[task] if task else (),
        experiment=experiment,
        overrides=set_ or (),
        sections=sections(replay=sampling),
        seed=seed,
        trusts_code=trust_custom_code,
    )
    found, name = one_inspected(model, settings)

    from ray_l4.setup.loaded import generate_examples, load_inspected

    for example in generate_examples(found, load_inspected(found, device), name, n, max_length):
        typer.echo(json.dumps(example, ensure_ascii=False))


def merge(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="Folder of a checkpoint with adapters (model.lora).")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New folder for the merged model.")],
    trust_custom_code: TrustOption = False,
) -> None:
    """Merge the adapters of a checkpoint into their model.

    The result is an ordinary model folder that loads without peft.
    """
    from ray_l4.setup.mergeable import check_mergeable

    check_mergeable(checkpoint, trust_custom_code)

    from ray_l4.learner.inspection import merge_folder

    merge_folder(checkpoint, out, trust_custom_code)
    typer.echo(f"wrote {out}")
