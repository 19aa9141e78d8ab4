"""Data sets of the Hugging Face Hub by name, in the hub's own conversion to Parquet; downloaded once, then cached."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from ray_l4.errors import ConfigError, DataError, first_line, nearest
from ray_l4.tasks.files import MissingFileError
from ray_l4.tasks.source import Source

CONVERTED = "refs/convert/parquet"
"""Branch on which the hub keeps its conversion: ``SUBSET/SPLIT/0000.parquet``."""

_TIMEOUT = 15.0
"""Seconds within which the hub must answer what it has."""
_DEFAULT = "default"
"""The subset that is read if there are several and none is named."""


def fetch_split(source: Source) -> Path:
    """Return the folder with the Parquet files of a split of ``TaskConfig.dataset``; without a network, the cached one.

    Raises:
        ConfigError: several subsets, and none is named.
        DataError: the hub cannot be reached and nothing is cached, or it has no such data set, subset or split.
    """
    name, _, subset = str(source.task.dataset).partition(":")
    files = [PurePosixPath(file) for file in _file_names(source, name)]
    splits = {file.parts[:2] for file in files if len(file.parts) == 3 and file.suffix == ".parquet"}
    subset = subset or _only_subset(source, sorted({pair[0] for pair in splits}))
    known = sorted(split for own, split in splits if own == subset)
    if not known:
        subsets = sorted({pair[0] for pair in splits})
        raise DataError(f"{_at(source)}: no subset {subset!r}. {nearest(subset, subsets, 'It has no Parquet files.')}")
    split = next((wanted for wanted in source.split_names if wanted in known), None)
    if split is None:
        raise MissingFileError(
            f"{_at(source)}: no split {source.split_names[0]!r} in {subset!r}, which has {', '.join(known)}. Name the "
            f"one to use with the task's key splits (splits: {{{source.split}: NAME}})."
        )
    return _snapshot(source, name, f"{subset}/{split}/*.parquet") / subset / split


def _only_subset(source: Source, subsets: list[str]) -> str:
    if len(subsets) == 1:
        return subsets[0]
    if _DEFAULT in subsets or not subsets:
        return _DEFAULT
    raise ConfigError(
        f"{_at(source)}: has several subsets: {', '.join(subsets[:12])}{', ...' if len(subsets) > 12 else ''}. "
        f"Name one: {source.task.dataset}:{subsets[0]}"
    )


def _file_names(source: Source, name: str) -> list[str]:
    """Return the names of the converted files: those of the hub, or those in the cache if it cannot be reached."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        # One request without retries; list_repo_files would try for half a minute where there is no network.
        found = HfApi().dataset_info(name, revision=CONVERTED, timeout=_TIMEOUT)
        return [file.rfilename for file in found.siblings or []]
    except RepositoryNotFoundError as error:
        raise DataError(
            f"{_at(source)}: the hub has no such data set, or it is private (set HF_TOKEN); expected OWNER/NAME, or "
            "OWNER/NAME:SUBSET."
        ) from error
    except RevisionNotFoundError as error:
        raise DataError(
            f"{_at(source)}: the hub has not converted it to Parquet. Load it with the library datasets, save it "
            "(save_to_disk), and give the task the path of that folder."
        ) from error
    except Exception as error:  # of the network: their classes differ between versions of the library
        cached = _snapshot(source, name, "*/*/*.parquet", cause=error)
        return [str(path.relative_to(cached)) for path in cached.rglob("*.parquet")]


def _snapshot(source: Source, name: str, pattern: str, cause: Exception | None = None) -> Path:
    """Return the folder of the files that match; after a failure of the network (``cause``) only of cached ones."""
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            name,
            repo_type="dataset",
            revision=CONVERTED,
            allow_patterns=[pattern],
            local_files_only=cause is not None,
        )
    except Exception as error:
        raise DataError(
            f"{_at(source)}: cannot be downloaded ({first_line(cause or error)}), and is not in the cache. Check the "
            "network (HF_ENDPOINT names another server, HF_HUB_OFFLINE=1 forbids its use), or copy the data here and "
            "give the task a path."
        ) from error
    return Path(str(folder))


def _at(source: Source) -> str:
    return f"Task {source.task.name!r}: data set {source.task.dataset!r}"
