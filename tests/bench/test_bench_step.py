"""The comparison with the textbook's step: the same work on both sides, figures that add up, rows in a ledger."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ray_l4.bench import ledger, spans
from ray_l4.bench.lengths import drawn, real_lengths
from ray_l4.bench.step import BEYOND, measure, padding
from ray_l4.bench.step_sides import Side, StepCase
from ray_l4.errors import ConfigError
from ray_l4.losses.output_product import output_logits

LENGTHS = [(12, 3), (7, 2), (20, 6), (9, 1)] * 4
CASE = StepCase("small", 2, LENGTHS, threads=1)
KEYS = [
    *("bench", "model", "batch", "threads", "cpu_ms_step", "textbook_cpu_ms_step", "speedup_over_textbook"),
    *("wall_speedup_over_textbook", "peak_rss_bytes", "memory_ratio_to_textbook", "max_gradient_difference"),
    *("padding_fraction", "spans"),
]


def test_both_sides_have_the_same_loss_and_gradient() -> None:
    here, textbook = Side(CASE, textbook=False), Side(CASE, textbook=True)
    pairs = list(zip(here.gradients(), textbook.gradients(), strict=True))
    largest = max(float(np.abs(theirs).max()) for _, theirs in pairs)
    assert largest > 1e-3, "there is something to compare"
    assert max(float(np.abs(ours - theirs).max()) for ours, theirs in pairs) <= 1e-5 * largest


def test_the_textbook_computes_more_of_the_same() -> None:
    """Padding, and logits of positions that bear no loss."""
    here, textbook = (Side(CASE, textbook=own).counts(0) for own in (False, True))
    assert 0 < here.flops < textbook.flops
    assert 0 < here.num_bytes < textbook.num_bytes


def test_the_examples_of_a_case_have_its_lengths() -> None:
    rows = CASE.table().to_pylist()
    assert [(len(row["ids"]), len(row["ids"]) - row["prompt_length"]) for row in rows] == LENGTHS
    assert CASE.num_steps == 8


def test_padding_is_that_of_the_two_grids() -> None:
    case = StepCase("small", 2, [(10, 2), (6, 2)], threads=1)
    assert padding(case, range(1)) == pytest.approx(1 - (16 + 18) / (2 * 10 + 2 * 11))
    assert padding(StepCase("small", 2, [(6, 2), (6, 2)], threads=1), range(1)) == 0.0


def test_shares_of_spans_add_up() -> None:
    def work() -> None:
        with spans.span("product"):
            torch.ones(200, 200) @ torch.ones(200, 200)

    found = spans.shares(work)
    assert set(found) == {"product", "other"}
    assert sum(found.values()) == pytest.approx(1.0, abs=1e-3) and found["product"] > 0


def test_operations_and_bytes_of_a_product() -> None:
    a, b = torch.ones(10, 20), torch.ones(20, 30)
    assert spans.counts(lambda: a @ b) == (2 * 10 * 20 * 30, 4 * (200 + 600 + 300))


def test_the_output_layer_s_product_counts_like_any_other() -> None:
    hidden, weight = torch.ones(3, 8), torch.ones(50, 8)
    expected = spans.counts(lambda: hidden @ weight.T).flops
    assert spans.counts(lambda: output_logits(hidden, weight, None)).flops == expected == 2 * 3 * 8 * 50


@given(st.lists(st.floats(0, 9), min_size=1, max_size=30))
def test_quantiles_are_in_order_and_among_the_values(values: list[float]) -> None:
    found = spans.quantiles(values)
    assert min(values) <= found["p20"] <= found["p50"] <= found["p80"] <= max(values)


def test_known_lengths_serve_where_the_data_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_L4_DATA", raising=False)
    lengths, measured = real_lengths(["woz.en", "cnn_dailymail"], 3_000)
    assert not measured
    assert all(0 < answer < length <= 1_000 for own in lengths for length, answer in own)
    assert drawn(lengths, 9, seed=1) == drawn(lengths, 9, seed=1) != drawn(lengths, 9, seed=2)
    with pytest.raises(ConfigError, match=r"no lengths of 'mini\.sql' are known; expected some of woz\.en"):
        real_lengths(["mini.sql"], 3_000)


@pytest.mark.shared_data
@pytest.mark.slow
def test_lengths_of_real_data_are_near_the_known_ones(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_L4_DATA", raising=False)
    known, _ = real_lengths(["woz.en", "e2enlg"], 50_257)
    found, measured = real_lengths(["woz.en", "e2enlg"], 50_257, shared_data)
    assert measured
    for one, other in zip(known, found, strict=True):
        assert np.mean(one, axis=0) == pytest.approx(np.mean(other, axis=0), rel=0.2)


def test_rows_are_appended_with_machine_and_commit(tmp_path: Path) -> None:
    file = tmp_path / "new" / "bench.jsonl"
    for number in range(2):
        ledger.append(file, {"number": number, **ledger.provenance()})
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["number"] for row in rows] == [0, 1]
    assert {"machine", "processor", "commit", "load", "torch", "measured"} <= rows[0].keys()
    with pytest.raises(ConfigError, match="choose a file in a folder that can be written"):
        ledger.append(tmp_path, {})


@pytest.mark.processes
def test_a_measurement_has_all_its_figures() -> None:
    case = StepCase("small", 1, [(12, 3), (7, 2)] * BEYOND, threads=1)
    row = measure(case, 1, lambda line: None)
    assert list(row)[: len(KEYS)] == KEYS
    assert row["max_gradient_difference"] <= 1e-5
    assert row["cpu_ms_step"] > 0 and row["peak_rss_bytes"] > 0
    assert {"forward", "loss", "backward", "update", "exchange", "batch"} <= row["spans"].keys()
    assert all(math.isfinite(own) for own in row.values() if isinstance(own, float))
