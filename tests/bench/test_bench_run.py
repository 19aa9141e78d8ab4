"""The comparison of whole runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from ray_l4.bench.textbook_run import TextbookRun
from ray_l4.bench.whole_run import measure
from ray_l4.config.loading import load_experiment
from ray_l4.errors import ConfigError
from ray_l4.setup.setup import prepare

TINY = """\
method: l4
stream: [{name: mini.sql, train: 16, test: 2}, {name: mini.woz, train: 16, test: 2}]
model: {from_scratch: {layers: 1, width: 16, heads: 2, positions: 128, vocabulary: 500, dropout: 0.0}}
peers: {init: own}
training: {epochs: 2, batch_size: 8}
replay: {max_length: 20}
"""


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    file = tmp_path / "tiny.yaml"
    file.write_text(TINY, encoding="utf-8")
    return file


def test_the_textbook_learns_all_tasks_and_replays_the_first(experiment: Path) -> None:
    run = TextbookRun(prepare(load_experiment(experiment)))
    before = [model.transformer.wte.weight.detach().clone() for model in run.models]
    run.run()
    assert run.steps >= 8, "two epochs of two batches for each task"
    for model, start in zip(run.models, before, strict=True):
        assert not model.transformer.wte.weight.equal(start)


@pytest.mark.parametrize(
    ("line", "other"), [("method: l4", "method: lamol"), (TINY.splitlines()[2], "model: {name: gpt2}")]
)
def test_other_experiments_have_no_textbook(experiment: Path, line: str, other: str) -> None:
    experiment.write_text(TINY.replace(line, other), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"expected the method l4 and a model from scratch"):
        measure(experiment, Path("unused"), lambda line: None)


@pytest.mark.end_to_end
def test_a_measurement_has_the_figures_of_both_runs(experiment: Path, tmp_path: Path) -> None:
    profile = tmp_path / "profile.yaml"
    profile.write_text("exchange: {transport: in_process}\n", encoding="utf-8")
    row = measure(experiment, profile, lambda line: None)
    assert row["bench"] == "run" and row["steps"] >= 8 <= row["textbook_steps"]
    assert row["wall_seconds"] > row["training_seconds"] > 0 and row["textbook_wall_seconds"] > 0
    assert row["scoring_tail_seconds"] >= 0
    assert 0 < row["seconds_to_first_step"] < row["wall_seconds"] - row["training_seconds"]
    assert {"training", "replay", "scoring"} <= row["spans"].keys()
    assert row["speedup_over_textbook"] > 0 and row["peak_rss_bytes"] > 0
