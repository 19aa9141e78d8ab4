"""Figures of steps as columns, and their means where a drawing has no room for all of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_l4.errors import RunDirectoryError
from ray_l4.report.steps import COLUMNS, LATER_COLUMNS, POINTS, Steps, read_steps
from tests.report.html_runs import STEPS_OF_EPOCH, TRAFFIC, write_run


def steps_of(lengths: list[int], losses: np.ndarray) -> Steps:
    """Return the steps of one student in stages of these lengths."""
    starts = [0, *np.cumsum(lengths).tolist()]
    columns = {name: np.zeros(sum(lengths)) for name in (*COLUMNS, *LATER_COLUMNS)} | {"loss": losses}
    return Steps(columns, np.arange(sum(lengths)), starts)


@given(st.lists(st.integers(1, 900), min_size=1, max_size=4), st.integers(0, 99))
def test_means_keep_the_total_and_never_reach_over_a_stage_s_end(lengths: list[int], seed: int) -> None:
    losses = np.random.default_rng(seed).normal(size=sum(lengths)) + np.repeat(
        1000.0 * np.arange(len(lengths)), lengths
    )
    steps = steps_of(lengths, losses)
    position, means = steps.thinned("loss")
    assert len(position) == len(means) <= POINTS + len(lengths)
    assert (np.diff(position) > 0).all()
    stage = np.searchsorted(steps.starts, position, side="right") - 1
    assert np.round(means / 1000).astype(int).tolist() == stage.tolist()
    if sum(lengths) <= POINTS:
        assert means.tolist() == pytest.approx(losses.tolist())


def test_equal_bins_have_the_mean_of_all() -> None:
    losses = np.random.default_rng(0).normal(size=4 * POINTS)
    _, means = steps_of([4 * POINTS], losses).thinned("loss")
    assert len(means) == POINTS
    assert means == pytest.approx(losses.reshape(POINTS, 4).mean(axis=1))


def test_steps_without_a_figure_do_not_count() -> None:
    losses = np.tile([1.0, np.nan], POINTS)
    losses[:2] = np.nan
    _, means = steps_of([2 * POINTS], losses).thinned("loss")
    assert np.isnan(means[0])
    assert (means[1:] == 1).all()


def test_files_are_read_in_the_order_of_the_steps_and_students_taken_apart(tmp_path: Path) -> None:
    steps = read_steps(write_run(tmp_path / "run").path)
    assert steps is not None
    stage = 2 * STEPS_OF_EPOCH
    assert steps.starts == [0, stage, 2 * stage, 3 * stage]
    assert steps.students() == [0, 1]
    own = steps.of_student(1)
    assert own.position_R.tolist() == list(range(3 * stage))
    assert own.columns["step"].tolist() == [*range(stage)] * 3
    assert set(own.columns["student"]) == {1}
    assert own.total("bytes_sent") == 3 * stage * 2e6


def test_an_older_file_has_no_bytes_received(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    path = run.path / "steps" / "stage-1.epoch-1.parquet"
    pq.write_table(pq.read_table(path).drop_columns("bytes_received").replace_schema_metadata(None), path)
    steps = read_steps(run.path)
    assert steps is not None
    first = 2 * STEPS_OF_EPOCH
    missing = np.isnan(steps.of_student(0).columns["bytes_received"])
    assert missing.nonzero()[0].tolist() == [*range(first, first + STEPS_OF_EPOCH)]
    assert steps.of_student(0).total("bytes_received") == 5 * STEPS_OF_EPOCH * TRAFFIC["bytes_received"]


def test_a_run_without_steps_has_none(tmp_path: Path) -> None:
    assert read_steps(tmp_path) is None


def test_a_damaged_file_is_left_out_and_a_foreign_one_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = write_run(tmp_path / "run")
    path = run.path / "steps" / "stage-0.epoch-1.parquet"
    pq.write_table(pa.table({"stage": [0]}), path)
    with pytest.raises(RunDirectoryError, match=r"stage-0\.epoch-1\.parquet: has no column 'epoch'"):
        read_steps(run.path)
    path.unlink()
    others = read_steps(run.path)
    path.write_bytes(b"PAR1 and then nothing")
    found = read_steps(run.path)
    assert found is not None and others is not None
    assert found.columns["step"].tolist() == others.columns["step"].tolist()
    assert "stage-0.epoch-1.parquet: cannot be read" in caplog.text and "Its steps are left out." in caplog.text
