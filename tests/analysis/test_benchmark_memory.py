"""The plan's prediction compared with a real training process."""

from __future__ import annotations

import pytest

from analysis.benchmarks import memory
from ray_l4.planning.process_baselines import LEARNER_PROCESS


@pytest.mark.processes
def test_predicted_and_measured_memory_of_a_student_are_within_15_percent() -> None:
    (row,) = memory.compare(["small"])
    assert row["peak_rss_bytes"] > 1.5 * LEARNER_PROCESS, "else it is the process that is compared, not the model"
    assert row["ratio"] == pytest.approx(1, abs=0.15)
    assert {"bench", "codec", "peers", "vocab", "positions", "peak_rss_bytes"} <= row.keys()
