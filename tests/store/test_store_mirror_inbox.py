"""The copy of a run with an inbox: whenever it is cut off, each example that it has is learned once from it."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs

from ray_l4.errors import ClusterError
from ray_l4.store.atomic import write_text
from ray_l4.store.extension import finish_extension
from ray_l4.store.inbox.assignments import take
from ray_l4.store.inbox.inbox import Inbox
from ray_l4.store.inbox.places import shelf_folder
from ray_l4.store.inbox.record import assignments
from ray_l4.store.inbox.segments import segments_in
from ray_l4.store.mirror import Mirror
from ray_l4.store.promotion import decide, decisions
from ray_l4.store.run_directory import RunDirectory, RunState
from ray_l4.store.storage import Storage
from tests.store.inbox_fixtures import KNOWN, example, extend, new_run
from tests.store.unreliable import Unreliable


@pytest.fixture(scope="module", autouse=True)
def without_fsync() -> Iterator[None]:
    """Skip fsync, which takes most of the time and matters only for power failures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        yield


def learn_what_waits(run: RunDirectory) -> None:
    """What a service does with the inbox."""
    finish_extension(run)
    extend(run, take(run, [KNOWN]))


def finish_stage(run: RunDirectory) -> None:
    """What a command does at the end of a stage, and the gate after it."""
    last = len(run.experiment().stream) - 1
    write_text(run.checkpoint(last, 1, 0) / "config.json", "{}")
    run.save_state(RunState(stages_done=last + 1))
    decide(run, last, promoted=True, by="gate", why="it rose")


def check_copy(folder: Path) -> None:
    """Pull a copy, go on with it, and check that each example of its inbox is learned once."""
    Mirror.at(str(folder)).pull(folder.parent / "pulled")
    run = RunDirectory(folder.parent / "pulled")
    shelf = shelf_folder(run.path, KNOWN, "segments")
    there = {segment.name for segment in segments_in(shelf)}
    assert {name for each in assignments(run.path) for name in each.segments} <= there
    assert all(decision.stage < run.state().stages_done for decision in decisions(run))
    for _ in range(2):  # what was given to a stage already, then the rest
        learn_what_waits(run)
    folders = [run.path / "data" / Path(item.path).name for item in run.experiment().stream if item.path is not None]
    lines = [line for each in folders for line in (each / "train.jsonl").read_text().splitlines()]
    learned = Counter(json.loads(line)["sample_id"] for line in lines)
    assert set(learned.values()) <= {1}
    assert learned.total() == sum(segment.examples for segment in segments_in(shelf))


def test_a_push_may_be_interrupted_anywhere(tmp_path: Path) -> None:
    """The run was extended and has finished its new stage since the push before, and another example has arrived."""
    run = new_run(tmp_path / "run")
    Inbox(run.path).add(KNOWN, [example(1)])
    shutil.copytree(run.path, tmp_path / "before")
    learn_what_waits(run)
    finish_stage(run)
    Inbox(run.path).add(KNOWN, [example(2)])
    num_calls, interrupted = 0, True
    while interrupted:
        interrupted, folder = False, tmp_path / str(num_calls)
        folder.mkdir()
        files = Unreliable(fs.LocalFileSystem(), objects=True)
        mirror = Mirror("somewhere", "run", Storage(files, str(folder / "copy")))
        mirror.push(tmp_path / "before")
        files.fail_after(num_calls)
        try:
            mirror.push(run.path)
        except ClusterError:
            interrupted = True
        check_copy(folder / "copy")
        num_calls += 1
    assert num_calls > 10


@pytest.mark.parametrize("at", range(12))
def test_the_run_may_go_on_while_it_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """It is extended, and the new stage ends, between two files that the copy reads: for every two of them."""
    run = new_run(tmp_path / "run")
    Inbox(run.path).add(KNOWN, [example(1)])
    finish_stage(run)
    learn_what_waits(run)
    read, reads = Path.read_bytes, 0

    def reading(path: Path) -> Any:
        nonlocal reads
        reads += 1
        if reads == at + 1 and path.is_relative_to(run.path):
            Inbox(run.path).add(KNOWN, [example(2)])
            finish_stage(run)
            learn_what_waits(run)
            finish_stage(run)
        return read(path)

    mirror = Mirror(str(tmp_path), "copy")
    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", reading)
        mirror.push(run.path)
    assert reads > 0
    check_copy(tmp_path / "copy")
