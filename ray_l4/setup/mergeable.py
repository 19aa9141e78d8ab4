"""Whether a folder can be merged. Imports no PyTorch, so that a mistake is refused at once."""

from __future__ import annotations

from pathlib import Path

from ray_l4.errors import ModelError
from ray_l4.setup.inspected import check_trust
from ray_l4.store.checkpoints import ADAPTER_CONFIG, checkpoint_at, checkpoints, is_model
from ray_l4.store.run_directory import RunDirectory
from ray_l4.text.model_location import similar_folder

_EXPECTED = "expected the folder of a checkpoint with adapters (of a run with model.lora)"


def check_mergeable(folder: Path, trusts_code: bool = False) -> None:
    """Raise ModelError if ``folder`` holds no adapters; of a run directory, it names one of the checkpoints.

    Also if the run let code run that comes with the base model, unless the command line does so too (``trusts_code``).
    """
    if (folder / ADAPTER_CONFIG).is_file():
        place = checkpoint_at(folder)
        if place is not None:
            check_trust(place.run.experiment(), str(folder), trusts_code)
        return  # loading it names what is damaged
    if is_model(folder):
        raise ModelError(
            f"{folder}: a whole model without adapters (it has no {ADAPTER_CONFIG}), so there is nothing to merge. Use "
            f"it as it is, in 'ray-l4 evaluate', as model.name or with transformers. Otherwise, {_EXPECTED}."
        )
    if not folder.exists():
        raise ModelError(
            f"{folder}: no such folder, looked for at {folder.absolute()}; {_EXPECTED}.{similar_folder(folder)}"
        )
    if (folder / "config.yaml").is_file():
        found = checkpoints(RunDirectory(folder))
        example = f" One of its checkpoints: {found[-1].folder}" if found else " It has no checkpoint yet."
        raise ModelError(f"{folder}: a run directory; {_EXPECTED}.{example}")
    raise ModelError(f"{folder}: holds no model; {_EXPECTED}")
