"""The memory that preparing a user's own data takes, beside the size of what comes out."""

from __future__ import annotations

import pytest

from analysis.benchmarks import preparation


@pytest.mark.processes
def test_preparation_takes_a_few_times_the_memory_of_its_results() -> None:
    """Twice as much for 100,000 examples; with this few, what a process needs anyway counts for more."""
    found = preparation.measured(20_000)
    assert found["examples"] == 20_000
    assert found["table_bytes"] > 8 * 2**20, "else it is the process that is measured, not the data"
    assert found["ratio"] < 5, "examples are Python objects again, all at the same time"
    assert found["cpu_seconds"] > 0
