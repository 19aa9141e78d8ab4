"""Data sets of the hub, from a stand-in for it: no test uses the network."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import LocalEntryNotFoundError
from pydantic import ValidationError

from ray_l4.config.experiment import DataConfig
from ray_l4.config.stream import Splits, TaskConfig
from ray_l4.errors import ConfigError, DataError
from ray_l4.tasks.registry import load


class Hub:
    """One data set: files on the server, and those that a user has in the cache."""

    def __init__(self, folder: Path) -> None:
        self.server, self.cache = folder / "server", folder / "cache" / "snapshot"
        self.cache.mkdir(parents=True)
        self.reachable = True

    def put(self, subset: str, split: str, *answers: str) -> None:
        path = self.server / subset / split
        path.mkdir(parents=True)
        for number, answer in enumerate(answers):
            table = pa.table({"context": [f"c{number}"], "question": ["q"], "answer": [answer]})
            pq.write_table(table, path / f"{number:04}.parquet")

    def dataset_info(self, name: str, *, revision: str, timeout: float) -> SimpleNamespace:
        assert (name, revision) == ("me/mine", "refs/convert/parquet") and timeout < 60
        if not self.reachable:
            raise ConnectionError("no route\nand more lines")
        files = [".gitattributes", *(str(path.relative_to(self.server)) for path in self.server.rglob("*.parquet"))]
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=file) for file in files])

    def snapshot_download(self, name: str, *, allow_patterns: list[str], local_files_only: bool, **_: Any) -> str:
        if local_files_only and not any(self.cache.iterdir()):
            raise LocalEntryNotFoundError("nothing cached")
        for path in [] if local_files_only else self.server.rglob("*.parquet"):
            relative = path.relative_to(self.server)
            if fnmatch(str(relative), allow_patterns[0]):
                (self.cache / relative.parent).mkdir(parents=True, exist_ok=True)
                (self.cache / relative).write_bytes(path.read_bytes())
        return str(self.cache)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    found = Hub(tmp_path)
    monkeypatch.setattr(HfApi, "dataset_info", lambda api, name, **rest: found.dataset_info(name, **rest))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", found.snapshot_download)
    return found


def answers(split: Any = "train", name: str = "me/mine", **settings: Any) -> list[str]:
    task = TaskConfig(name="mine", dataset=name, metric="em", **settings)
    return load(task, split, DataConfig(max_bad_fraction=0)).column("answer").to_pylist()


def test_splits_are_downloaded_once_and_found_without_a_network(hub: Hub) -> None:
    hub.put("plain_text", "train", "a", "b")
    hub.put("plain_text", "validation", "c")
    assert answers() == ["a", "b"]
    assert [path.name for path in (hub.cache / "plain_text").iterdir()] == ["train"], "no other split is fetched"
    assert answers("dev") == answers("test", splits=Splits(test="validation")) == ["c"]
    hub.reachable = False
    assert answers() == ["a", "b"]


def test_a_subset_is_named_or_the_only_or_the_default_one(hub: Hub) -> None:
    hub.put("one", "train", "1")
    hub.put("two", "train", "2")
    assert answers(name="me/mine:two") == ["2"]
    with pytest.raises(ConfigError, match=r"several subsets: one, two\. Name one: me/mine:one"):
        answers()
    with pytest.raises(DataError, match=r"no subset 'too'\. Did you mean 'two'"):
        answers(name="me/mine:too")
    hub.put("default", "train", "3")
    assert answers() == ["3"]


def test_a_split_that_is_not_there_and_a_hub_that_does_not_answer(hub: Hub) -> None:
    hub.put("default", "train", "a")
    with pytest.raises(DataError, match=r"no split 'test' in 'default', which has train\..*splits: \{test: NAME\}"):
        answers("test")
    hub.reachable = False
    with pytest.raises(DataError, match=r"'me/mine': cannot be downloaded \(no route\), and is not in the cache"):
        answers()


@pytest.mark.parametrize("name", ["", "a/b/c", "a b", "https://x/y", "a/b:", "../x/y"])
def test_a_name_that_the_hub_cannot_have(name: str) -> None:
    with pytest.raises(ValidationError, match="OWNER/NAME"):
        TaskConfig(name="mine", dataset=name)


def test_a_path_and_a_data_set_exclude_each_other() -> None:
    with pytest.raises(ValidationError, match="only one of 'path' and 'dataset'"):
        TaskConfig(name="mine", dataset="me/mine", path=Path("x"))
