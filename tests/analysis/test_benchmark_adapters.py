"""The benchmark of the shortcuts for adapters, on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from analysis.benchmarks import adapters as benchmark
from ray_l4.learner import batched_engine, model_calls
from tests.learner import adapter_fixtures as adapted


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # bfloat16 keeps 8 bits: for more layers or larger weights, packed and separate sequences could differ too much.
    return adapted.save_base(tmp_path_factory.mktemp("base"), adapted.CONFIGS["llama, tied"])


def test_each_shortcut_is_measured(
    base: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "_LENGTHS", [3, 5])
    monkeypatch.setattr(benchmark, "_TOKENS", 4)
    threads = torch.get_num_threads()
    try:
        assert benchmark.main([str(base), "--rounds", "1"]) == 0
    finally:
        torch.set_num_threads(threads)
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [each["shortcut"] for each in found] == list(benchmark.SHORTCUTS)
    assert all(each["seconds"] > 0 and each["ratio"] > 0 for each in found)


def test_a_side_without_a_shortcut_does_without_it_and_puts_it_back(base: Path) -> None:
    model, _ = benchmark.build(str(base))
    functions = model_calls._contiguous_rows, batched_engine.token_rows_merged
    off = {name: context for name, (_, context) in benchmark.SHORTCUTS.items()}
    with off["contiguous_rows"](model), off["merged_token_rows"](model):
        assert model_calls._contiguous_rows is not functions[0]
        assert batched_engine.token_rows_merged is not functions[1]
    assert (model_calls._contiguous_rows, batched_engine.token_rows_merged) == functions
