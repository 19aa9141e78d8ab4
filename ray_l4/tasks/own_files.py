"""Where the data of a custom task is: the file or folder of each split. Reading it is left to ``custom.py``."""

from __future__ import annotations

from pathlib import Path

from ray_l4.errors import DataError, nearest
from ray_l4.tasks.files import OPENERS, MissingFileError, read_json
from ray_l4.tasks.source import Source

DATASET_STATE = "state.json"
"""File by which a folder is known that ``save_to_disk`` of the library datasets wrote."""
SPLIT_LIST = "dataset_dict.json"
"""File in which it lists the splits of several such folders."""

_TEXT_KINDS = (".jsonl", ".csv", ".tsv")
_EXPECTED = (
    "{0}.jsonl, {0}.csv or {0}.tsv (plain, .gz or .bz2), {0}.parquet (a file, or a folder of parts), or a folder "
)
_EXPECTED += "{0}/ that datasets saved"
_MOVED = "If it has moved, give the new place (the task's path in the experiment or in a run's config.yaml, or --path)."


def find_split(source: Source) -> Path:
    """Return the file of the split, or its folder: the only one.

    Raises:
        DataError: there is none, or there are several.
    """
    folder, names = source.folder, source.split_names
    expected, task = _EXPECTED.format(names[0]), f"Task {source.task.name!r}"
    if folder.is_file():
        if source.split == "dev":  # evaluation.validation may be a single file; other splits would share it
            return folder
        raise MissingFileError(f"{task}: {folder} is a file; expected the folder that holds {expected}.")
    if not folder.is_dir():
        raise MissingFileError(f"{task}: no folder {folder}; expected it to contain {expected}. {_MOVED}")
    present = [path for name in names for path in _candidates(folder, name)]
    if not present:
        _refuse_single_dataset(source)
        raise MissingFileError(
            f"{task}: no {source.split} data in {folder}; expected {expected}, found {_found(folder)}."
        )
    if len(present) > 1:
        both = " and ".join(path.name for path in present)
        raise DataError(f"{task}: {folder} contains {both}; keep one file for the {source.split} split.")
    return present[0]


def _candidates(folder: Path, name: str) -> list[Path]:
    files = [folder / f"{name}{kind}{suffix}" for kind in _TEXT_KINDS for suffix in OPENERS]
    parquet, dataset = folder / f"{name}.parquet", folder / name
    found = [path for path in files if path.is_file()]
    found += [parquet] if parquet.exists() else []
    return found + ([dataset] if (dataset / DATASET_STATE).is_file() else [])


def _refuse_single_dataset(source: Source) -> None:
    """Raise DataError if the folder is one data set without splits, or has splits of other names."""
    folder = source.folder
    if (folder / DATASET_STATE).is_file():
        raise DataError(
            f"Task {source.task.name!r}: {folder} is one data set without splits; expected train and test. Split it "
            f"(dataset.train_test_split(0.1).save_to_disk(FOLDER)), or save each split in a folder of its own."
        )
    if (folder / SPLIT_LIST).is_file():
        splits = read_json(folder / SPLIT_LIST).get("splits", [])
        hint = nearest(source.split_names[0], splits, f"{SPLIT_LIST} lists no splits.")
        raise MissingFileError(
            f"Task {source.task.name!r}: {folder} has no split {source.split_names[0]!r}. "
            f"{hint} Name the one to use with the task's key splits "
            f"(splits: {{{source.split}: NAME}})."
        )


def _found(folder: Path) -> str:
    names = sorted(f"{path.name}/" if path.is_dir() else path.name for path in folder.iterdir())
    return ", ".join([*names[:8], *(["..."] if len(names) > 8 else [])]) or "nothing"
