"""The projection of the papers' run from measured steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from analysis.benchmarks.papers import main, projected, stages


def test_stages_have_the_papers_sizes() -> None:
    assert [stage.examples for stage in stages()] == [
        {"woz.en": 2536},
        {"woz.en": 1321, "cnn_dailymail": 6604},
        {"woz.en": 652, "cnn_dailymail": 652, "wikisql": 6525},
    ]


def test_the_time_of_a_stage_follows_from_its_examples() -> None:
    rows = projected(
        {"woz.en": 0.001, "cnn_dailymail": 0.1, "wikisql": 0.01},
        {"woz.en": 20.0, "cnn_dailymail": 700.0, "wikisql": 100.0},
        rate=1000.0,
    )
    assert [row["training_seconds"] for row in rows] == pytest.approx(
        [9 * 2.536, 9 * (1.321 + 660.4), 9 * (0.652 + 65.2 + 65.25)]
    )
    assert [row["replay_seconds"] for row in rows] == pytest.approx([0.0, 1321 * 0.02, 652 * 0.02 + 652 * 0.7])


@pytest.mark.processes
@pytest.mark.slow
def test_it_measures_and_projects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RAY_L4_DATA", raising=False)
    out, ledger = tmp_path / "made" / "papers.json", tmp_path / "bench.jsonl"
    small = ["--model", "small", "--batch", "1", "--steps", "1", "--examples", "2"]
    main([*small, "--out", str(out), "--ledger", str(ledger)])
    found = json.loads(out.read_text())
    assert json.loads(capsys.readouterr().out) == found
    assert found["seconds"] == pytest.approx(
        sum(stage["training_seconds"] + stage["replay_seconds"] for stage in found["stages"])
    )
    rows = [json.loads(line) for line in ledger.read_text().splitlines()]
    assert [row["bench"] for row in rows] == ["step", "step", "step", "generate"]
    longest = found["stages"][1]["training_seconds"]
    assert longest > found["stages"][0]["training_seconds"] > 0, "articles take longer than dialogues"
