"""Whether a folder can be merged. Imports no PyTorch, so that a mistake is refused at once."""

from __future__ import annotations

from pathlib import Path

from ray_l4.errors import ModelError
from ray_l4.store.checkpoints import checkpoints, is_model
from ray_l4.store.run_directory import RunDirectory
from ray_l4.text.model_location import similar_folder

_EXPECTED = "expected the folder of a checkpoint with adapters (of a run with model.lora)"


def check_mergeable(folder: Path) -> None:
    """Raise ModelError if ``folder`` holds no model; of a run directory, it names one of the checkpoints."""
    if is_model(folder):
        return
    if not folder.exists():
        raise ModelError(
            f"{folder}: no such folder, looked for at {folder.absolute()}; {_EXPECTED}.{similar_folder(folder)}"
        )
    if (folder / "config.yaml").is_file():
        found = checkpoints(RunDirectory(folder))
        example = f" One of its checkpoints: {found[-1].folder}" if found else " It has no checkpoint yet."
        raise ModelError(f"{folder}: a run directory; {_EXPECTED}.{example}")
    raise ModelError(f"{folder}: holds no model; {_EXPECTED}")
