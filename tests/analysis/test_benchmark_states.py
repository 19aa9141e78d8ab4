"""The benchmark of states: whose blocks have states, and what is compared with what."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.benchmarks import states
from analysis.benchmarks.states import Block, Result


def block(number: int, wall: float) -> Block:
    return Block(number, 100, wall, 2 * wall, wall)


@given(cost=st.floats(-0.5, 2), plain=st.floats(0.1, 1e3), drift=st.floats(0, 0.01))
def test_the_cost_is_that_of_neighbours_and_a_drift_of_the_machine_is_in_both_alike(
    cost: float, plain: float, drift: float
) -> None:
    kinds = [states.TURNS[index % 4] for index in range(8)]
    walls = [plain * (1 + cost * is_on) * (1 + drift * index) for index, is_on in enumerate(kinds)]
    result = Result([block(2 * is_on, wall) for is_on, wall in zip(kinds, walls, strict=True)], 1000, 0.1)
    costs = result.cost("wall_seconds")
    assert len(costs) == 4
    assert sum(costs) / 4 == pytest.approx(cost, abs=0.02 * (1 + cost))
    assert result.cost("cpu_seconds") == pytest.approx(costs)


@pytest.mark.slow
def test_a_small_benchmark_in_one_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    experiment, table = tmp_path / "small.yaml", tmp_path / "states.csv"
    experiment.write_text(
        "name: small\nstream: [mini.woz]\nmodel: {from_scratch: {layers: 1, width: 16, heads: 2, positions: 96, "
        "vocabulary: 300}}\ntraining: {batch_size: 2}\n",
        encoding="utf-8",
    )
    options = ["--transport", "in_process", "--every", "2", "--steps", "5", "--blocks", "4", "--csv", str(table)]
    assert states.main([str(experiment), *options]) == 0
    assert "cost, every 2 steps" in capsys.readouterr().out
    rows = list(csv.DictReader(table.open(encoding="utf-8")))
    # The fifth step of a block is the first of two before the next state, which may then be a block's first.
    assert [int(row["states"]) > 0 for row in rows] == list(states.TURNS)
    assert {row["steps"] for row in rows} == {"5"}
    assert all(float(row["wall_seconds"]) > 0 and int(row["state_bytes"]) > 1000 for row in rows)
