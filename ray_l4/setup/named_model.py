"""What a command's MODEL can be: a run directory, a checkpoint, another model's folder, or a name on the hub."""

from __future__ import annotations

import re
from pathlib import Path

from ray_l4.config.paths import expand_home
from ray_l4.errors import ModelError
from ray_l4.store.checkpoints import MODEL_FILES, is_model
from ray_l4.text.model_location import located, similar_folder

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def run_or_model(model: str) -> Path | None:
    """Return the run directory or model folder that ``model`` names; None if it is a name on the hub.

    Raises ModelError if it can be none of them.
    """
    folder = expand_home(model)
    if is_model(folder) or (folder / "config.yaml").is_file():
        return folder
    if folder.exists() or not _HUB_NAME.fullmatch(model) or _is_local(folder):
        raise _no_model(folder)
    located(model, "MODEL")  # raises if it cannot be a model of the hub
    return None


def hub_note(model: str | None) -> str:
    """Return a sentence for messages, with a space before it, if the model is looked for on the hub; else nothing."""
    if model is None or expand_home(model).exists():
        return ""
    path = Path(model)
    return f" There is no folder {path.absolute()}, so {model} is taken for a model of the hub.{similar_folder(path)}"


def _is_local(folder: Path) -> bool:
    """Return whether a name like ``runs/first`` was meant as a path: there is a folder ``runs``."""
    return len(folder.parts) > 1 and folder.parent.is_dir()


def _no_model(folder: Path) -> Exception:
    files = " or ".join(MODEL_FILES)
    if not folder.exists():
        return ModelError(f"{folder}: no such folder, looked for at {folder.absolute()}.{similar_folder(folder)}")
    above = folder.resolve().parents
    run = next((parent for parent in above if (parent / "config.yaml").is_file()), None)
    if run is not None:
        return ModelError(
            f"{folder}: not a checkpoint (no {files} in it). It is part of the run {run}: give that, with --stage, "
            "--epoch or --student to select checkpoints."
        )
    return ModelError(
        f"{folder}: neither a run directory (no config.yaml in it) nor a checkpoint or another model (no {files})"
    )
