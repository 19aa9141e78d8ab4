"""Preparing examples keeps few of them as Python objects at a time, however many there are."""

from __future__ import annotations

import csv
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from ray_l4.config.experiment import ExperimentConfig
from ray_l4.setup.setup import prepare

FROM_SCRATCH = {"layers": 1, "width": 32, "heads": 2, "positions": 64, "vocabulary": 300}


def write_jsonl(path: Path, rows: list[dict[str, str]]) -> None:
    path.with_suffix(".jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_csv(path: Path, rows: list[dict[str, str]]) -> None:
    with path.with_suffix(".csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["context", "question", "answer"])
        writer.writeheader()
        writer.writerows(rows)


def python_peak(folder: Path, write: Callable[[Path, list[dict[str, str]]], None], examples: int) -> int:
    """Return the bytes of Python objects that existed at most while ``examples`` examples were prepared."""
    folder.mkdir()
    for split, count in (("train", examples), ("test", 2)):
        rows = [
            {"context": f"{i} is a number {'and more ' * 5}", "question": f"what is {i}?", "answer": str(i)}
            for i in range(count)
        ]
        write(folder / split, rows)
    stream = [{"name": "own", "path": str(folder), "metric": "em"}]
    experiment = ExperimentConfig.model_validate({"stream": stream, "model": {"from_scratch": FROM_SCRATCH}})
    tracemalloc.start()
    try:
        setup = prepare(experiment)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        assert setup.training["own"].num_rows == examples


@pytest.mark.parametrize("write", [write_jsonl, write_csv])
def test_more_examples_are_not_more_python_objects(
    write: Callable[[Path, list[dict[str, str]]], None], tmp_path: Path
) -> None:
    python_peak(tmp_path / "first", write, 10)  # what is loaded once counts in neither of the two
    few, many = (python_peak(tmp_path / str(count), write, count) for count in (1_500, 6_000))
    assert many - few < 200 * 4_500, "a dictionary of three short texts takes more than 500 bytes"
