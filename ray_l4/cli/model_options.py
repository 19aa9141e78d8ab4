"""Options of the commands that inspect models: which checkpoint, which settings, which device."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from ray_l4.errors import ConfigError

DEVICES = ("auto", "cpu", "cuda")

MODEL_HELP = (
    "Run directory (every student's last checkpoint), folder of a checkpoint, or any model's folder or hub name."
)
ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)]
TaskOption = Annotated[
    str | None, typer.Option("--task", help="Name of the task; may be left out if the run has only one.")
]
StudentOption = Annotated[int | None, typer.Option(min=0, help="Of a run: this student's checkpoint.")]
StageOption = Annotated[
    int | None,
    typer.Option(min=0, help="Of a run: the checkpoint of this stage, counted from 0; the last if not given."),
]
EpochOption = Annotated[
    int | None,
    typer.Option(min=1, help="Of a run: the checkpoint of this epoch, counted from 1; the last if not given."),
]
ExperimentOption = Annotated[
    Path | None,
    typer.Option(
        "--experiment",
        metavar="EXPERIMENT.yaml",
        help="Settings for a model outside a run directory, and the tasks of an untouched model.",
    ),
]
SettingOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a value of the run's config.yaml. Repeatable."),
]
TrustOption = Annotated[
    bool,
    typer.Option(
        "--trust-custom-code",
        help="Run the Python code that comes with the model or is named in its files, with all rights of your account.",
    ),
]
DeviceOption = Annotated[str, typer.Option(help="auto (a GPU if there is one), cpu or cuda.")]
SeedOption = Annotated[int | None, typer.Option(help="Seed of sampling; the run's if not given.")]


def given(**values: object) -> dict[str, object]:
    """Return the values that are not None: the options that the command line gives."""
    return {name: value for name, value in values.items() if value is not None}


def sections(**values: Mapping[str, object]) -> dict[str, Mapping[str, object]]:
    """Return the sections of an experiment in which at least one value is given."""
    return {name: section for name, section in values.items() if section}


def check_device(device: str) -> None:
    """Raise ConfigError if ``device`` is none of ``DEVICES``."""
    if device not in DEVICES:
        raise ConfigError(f"--device {device}: expected one of {', '.join(DEVICES)}")
