"""Built-in tasks read from the reference implementations' files, with gold answers or those decoded by teachers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ray_l4.config.experiment import DataConfig
from ray_l4.config.stream import TaskConfig
from ray_l4.errors import DataError
from ray_l4.tasks.registry import load

Write = Callable[..., Path]

DOMAINS = ("e2enlg", "rnnlg.rest", "rnnlg.hotel", "rnnlg.tv", "rnnlg.laptop")


def document(*answers: str) -> dict[str, Any]:
    entries = [
        {"paragraphs": [{"context": f"c{i}", "qas": [{"id": str(i), "question": "q", "answers": [{"text": answer}]}]}]}
        for i, answer in enumerate(answers)
    ]
    return {"data": entries}


@pytest.fixture
def folder(write: Write, tmp_path: Path) -> Path:
    write("converted/e2enlg_to_squad-train-v2.0.json", document("one", "two"))
    write("converted/e2enlg_to_squad-distil-v2.0.json", document("eins", "two"))
    write("converted/e2enlg_to_squad-test-v2.0.json", document("three"))
    return tmp_path / "converted"


def answers(data: DataConfig, split: Any, name: str = "e2enlg") -> list[str]:
    return load(TaskConfig(name=name, train="all", test="all"), split, data).column("answer").to_pylist()


def test_a_built_in_task_is_read_from_converted_files_where_there_are_any(folder: Path) -> None:
    data = DataConfig(converted=folder, raw=folder)
    assert answers(data, "train") == ["one", "two"]
    assert answers(data, "test") == ["three"]
    with pytest.raises(DataError, match="woz"):
        answers(data, "train", "woz.en")  # has no converted file, and its raw files do not exist


def test_distil_changes_the_training_answers_and_nothing_else(folder: Path) -> None:
    data = DataConfig(converted=folder, distil=True)
    assert answers(data, "train") == ["eins", "two"]
    assert answers(data, "test") == ["three"]


def test_distil_without_such_a_file_is_an_error_that_names_it(folder: Path) -> None:
    (folder / "e2enlg_to_squad-distil-v2.0.json").unlink()
    with pytest.raises(DataError, match=r"e2enlg_to_squad-distil-v2\.0\.json"):
        answers(DataConfig(converted=folder, distil=True), "train")


def test_a_task_s_own_path_takes_precedence_over_the_common_folder(folder: Path, write: Write, tmp_path: Path) -> None:
    write("mine/e2enlg_to_squad-train-v2.0.json", document("mine"))
    task = TaskConfig(name="e2enlg", path=tmp_path / "mine", train="all")
    assert load(task, "train", DataConfig(converted=folder)).column("answer").to_pylist() == ["mine"]


@pytest.mark.slow
@pytest.mark.shared_data
@pytest.mark.parametrize("task", DOMAINS)
def test_the_published_distil_files_are_the_training_files_with_other_answers(task: str, shared_data: Path) -> None:
    """REFERENCE.md#seq-kd: contexts, questions, ids and order unchanged."""
    given, distilled = (
        load(TaskConfig(name=task), "train", DataConfig(converted=shared_data / "processed_l2kd", distil=distil))
        for distil in (False, True)
    )
    same = ["context", "question", "sample_id"]
    assert given.select(same).equals(distilled.select(same))
    published = {"e2enlg": 0.002, "rnnlg.rest": 0.34, "rnnlg.hotel": 0.37, "rnnlg.tv": 0.33, "rnnlg.laptop": 0.01}
    pairs = zip(given["answer"].to_pylist(), distilled["answer"].to_pylist(), strict=True)
    equal = sum(one.strip() == other.strip() for one, other in pairs) / given.num_rows
    assert equal == pytest.approx(published[task], abs=0.006)
