"""``checkpoint.keep``: how many checkpoints stay, and which of them stay because they are needed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_l4.run.retention import Retention, checkpoints_in
from ray_l4.run.session import start
from ray_l4.setup.setup import prepare
from ray_l4.store.run_directory import RunDirectory
from tests.run import run_fixtures as small
from tests.run.test_run_validation import SECTIONS, records, validated

IN_PROCESS = small.cluster("in_process")


def places(run: RunDirectory) -> set[tuple[int, int, int]]:
    return set(checkpoints_in(run.path))


EVERY = {(stage, epoch, student) for stage in (0, 1) for epoch in (1, 2) for student in (0, 1)}


@pytest.mark.parametrize(
    ("keep", "when", "expected"),
    [
        ("all", "epoch", EVERY),
        ("last", "epoch", {(1, 2, 0), (1, 2, 1)}),
        (3, "epoch", EVERY - {(0, 1, 0), (0, 1, 1)}),
        ("last", "stage", {(1, 2, 0), (1, 2, 1)}),
        (2, "stage", {(0, 2, 0), (0, 2, 1), (1, 2, 0), (1, 2, 1)}),
        (9, "epoch", EVERY),
    ],
)
def test_the_newest_of_each_student_stay(keep: Any, when: str, expected: set[Any], tmp_path: Path) -> None:
    config = small.experiment(checkpoint={"keep": keep}, evaluation={"when": when, "max_new_tokens": 4})
    run, _ = small.complete_run(config, IN_PROCESS, tmp_path / "run")
    assert places(run) == expected
    cells = run.scores()
    assert len(cells) == len(EVERY if when == "epoch" else expected | {(0, 2, 0), (0, 2, 1)}) * 2, "all are scored"
    assert not [path for path in (run.path / "checkpoints").rglob("*") if path.is_dir() and not any(path.iterdir())]


def test_a_run_that_keeps_one_can_be_resumed(tmp_path: Path) -> None:
    config = small.experiment(checkpoint={"keep": "last"})
    undisturbed, _ = small.complete_run(config, IN_PROCESS, tmp_path / "undisturbed")
    setup, run = small.stopped_run(config, tmp_path / "stopped", "learning mini.sql")
    small.finish(start(setup, IN_PROCESS, run))
    small.assert_equal(run, undisturbed)


def test_models_of_single_tasks_are_results_and_stay(tmp_path: Path) -> None:
    config = small.quick("l2kd-word", checkpoint={"keep": "last"})
    run, _ = small.complete_run(config, IN_PROCESS, tmp_path / "run")
    assert places(run) == {(1, 3, 0)}
    assert places(RunDirectory.open(run.teachers())) == {(0, 3, 0), (1, 3, 0)}


def test_the_best_epoch_stays_though_later_ones_are_newer(tmp_path: Path) -> None:
    config = validated("finetune", when="epoch").model_copy(
        update={"checkpoint": small.experiment(checkpoint={"keep": "last"}).checkpoint}
    )
    run, summary = small.complete_run(config, IN_PROCESS, tmp_path / "run")
    last = records(run)[1]
    assert places(run) == {(1, last["epoch"], 0), (1, len(last["means"]), 0)}
    assert summary["final"]["0"].keys() == {task["name"] for task in SECTIONS["stream"]}


SETUP = prepare(small.experiment(checkpoint={"keep": 2}))


@given(
    st.sets(st.tuples(st.integers(0, 3), st.integers(1, 2), st.integers(0, 1))),
    st.sets(st.tuples(st.integers(0, 3), st.integers(1, 2), st.integers(0, 1)), max_size=3),
    st.integers(0, 3),
    st.booleans(),
)
def test_nothing_that_is_needed_is_removed(
    written: set[tuple[int, int, int]], pending: set[tuple[int, int, int]], done: int, mirrored: bool
) -> None:
    with TemporaryDirectory() as folder, ThreadPoolExecutor(1) as disk:
        run = RunDirectory(Path(folder))
        for place in written:
            run.checkpoint(*place).mkdir(parents=True)
        cluster = small.cluster("in_process", **({"storage_path": folder} if mirrored else {}))
        context = SimpleNamespace(setup=SETUP, cluster=cluster, directory=run)
        Retention(cast(Any, context), cast(Any, SimpleNamespace(pending=pending)), disk).apply(done, {(3, 1)})
        disk.shutdown()
        left = places(run)
        assert written & pending <= left
        needed = {done - 1} | ({done - 2} if mirrored else set())
        assert {place for place in written if place[0] in needed and place[1] == 2} <= left
        assert {place for place in written if place[:2] == (3, 1)} <= left
        for student in (0, 1):
            own = sorted(place for place in written if place[2] == student)
            assert set(own[-2:]) <= left
