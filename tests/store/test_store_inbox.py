"""Examples in an inbox: whole, once, and there when they were acknowledged."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_l4.errors import DataError, RunDirectoryError, UnwritableError
from ray_l4.store.inbox.assignments import waiting
from ray_l4.store.inbox.example import Example
from ray_l4.store.inbox.inbox import Inbox
from ray_l4.store.inbox.places import inbox_of, shelf_folder, task_folders
from ray_l4.store.inbox.segments import Segment, read_segment, segments_in
from tests.store.inbox_fixtures import example, new_run

TEXT = st.text(st.characters(blacklist_categories=["Cs"]), max_size=8)


def stored(run: Path, task: str, kind: str = "segments") -> list[Example]:
    folder = shelf_folder(run, task, kind)
    return [found for segment in segments_in(folder) for found in read_segment(folder, segment)]


def test_examples_are_on_disk_once_and_in_order(tmp_path: Path) -> None:
    box = Inbox(tmp_path)
    first = box.add("a/b", [example(1), example(2)])
    again = box.add("a/b", [example(2), example(3), example(3)])
    assert [receipt.duplicate for receipt in first + again] == [False, False, True, False, True]
    assert [found.context for found in stored(tmp_path, "a/b")] == ["context 1", "context 2", "context 3"]
    assert [path.name for path in (tmp_path / "inbox").iterdir() if path.is_dir()] == ["a%2Fb"]
    assert waiting(tmp_path, "a/b").examples == 3
    assert not waiting(tmp_path, "b").segments
    assert [*task_folders(tmp_path)] == ["a/b"]


def test_another_process_and_a_later_one_know_what_is_there(tmp_path: Path) -> None:
    one, other = Inbox(tmp_path), Inbox(tmp_path)
    one.add("t", [example(1)])
    assert other.add("t", [example(1)])[0].duplicate
    other.add("t", [example(2)])
    assert one.add("t", [example(2)])[0].duplicate
    assert Inbox(tmp_path).add("t", [example(2)])[0].duplicate
    assert [segment.number for segment in waiting(tmp_path, "t").segments] == [1, 2]


def test_another_task_has_examples_of_its_own_and_tests_are_not_learned(tmp_path: Path) -> None:
    box = Inbox(tmp_path)
    assert not box.add("t", [example(1)], "tests")[0].duplicate
    assert box.add("t", [example(1)])[0].duplicate
    assert not box.add("u", [example(1)])[0].duplicate
    assert not box.add("u", [example(1)], "tests")[0].duplicate
    assert (len(stored(tmp_path, "t")), len(stored(tmp_path, "u"))) == (0, 1)


@given(TEXT, TEXT, st.lists(TEXT, min_size=1, max_size=3), st.none() | TEXT)
def test_an_example_is_read_as_it_was_written(context: str, question: str, answers: list[str], own: str | None) -> None:
    written = Example(context, question, tuple(answers), own or None, "feedback", "now", "")
    read = Example.of(json.loads(written.to_line()))
    assert (read, read.id) == (written, written.id)
    assert "\n" not in written.to_line()


@given(TEXT, TEXT, TEXT)
def test_ids_tell_texts_apart_but_not_how_they_are_written(context: str, question: str, answer: str) -> None:
    id = Example(context, question, (answer,)).id
    assert Example(f" {context}\r\n", f"{question}\t", (f"\n{answer}",)).id == id
    assert Example(context + "x", question, (answer,)).id != id
    moved = Example(context + "|" + question, "", (answer,))
    assert moved.id != id or question == ""
    assert Example("caf\u00e9", "", ("x",)).id == Example("cafe\u0301", "", ("x",)).id


@settings(max_examples=20)
@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=4), max_size=6))
def test_whatever_arrives_in_whatever_batches_is_stored_once(batches: list[list[int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder)
        for batch in batches:
            Inbox(run).add("t", [example(number) for number in batch])
        found = [one.context for one in stored(run, "t")]
        wanted = dict.fromkeys(f"context {number}" for batch in batches for number in batch)
        assert found == list(wanted)


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (Example(" ", "\u200b", ("a",)), "both blank"),
        (Example("c", "q", (" ",)), "answer is blank"),
        (Example("c", "q", ()), "answer is missing"),
        (Example("c\ud800", "q", ("a",)), "context contains a lone surrogate at character 1"),
        (Example("c", "q", ("a",), "\ud800"), "given contains"),
    ],
)
def test_what_cannot_be_learned_is_refused(tmp_path: Path, bad: Example, why: str) -> None:
    with pytest.raises(DataError, match=why):
        Inbox(tmp_path).add("t", [example(1), bad])
    assert not inbox_of(tmp_path).exists()


def test_callers_that_come_together_share_segments(tmp_path: Path) -> None:
    """While one of them writes, all others queue; the next segment has them all."""
    box, num_callers = Inbox(tmp_path), 16
    receipts: dict[int, bool] = {}
    box._writing.acquire()
    callers = [
        threading.Thread(target=lambda n=number: receipts.update({n: box.add("t", [example(n // 2)])[0].duplicate}))
        for number in range(num_callers)
    ]
    for caller in callers:
        caller.start()
    while len(box._requests) < num_callers:
        pass
    box._writing.release()
    for caller in callers:
        caller.join()
    assert [segment.examples for segment in waiting(tmp_path, "t").segments] == [num_callers // 2]
    assert sum(receipts.values()) == num_callers // 2
    assert all(receipts[number] != receipts[number + 1] for number in range(0, num_callers, 2))


def test_many_threads_lose_and_double_nothing(tmp_path: Path) -> None:
    boxes = [Inbox(tmp_path), Inbox(tmp_path)]

    def send(first: int) -> None:
        for number in range(first, first + 10):
            boxes[number % 2].add("t", [example(number)])

    threads = [threading.Thread(target=send, args=(first,)) for first in (0, 5, 10, 15)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(one.context for one in stored(tmp_path, "t")) == sorted(f"context {n}" for n in range(25))


def test_a_full_disk_acknowledges_nothing_and_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = Inbox(tmp_path)
    box.add("t", [example(1)])

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(UnwritableError, match=r"disk is full.*Free some space"):
            box.add("t", [example(1), example(2)])
        with pytest.raises(UnwritableError):
            box.add("new", [example(1)])
    assert [one.context for one in stored(tmp_path, "t")] == ["context 1"]
    assert [receipt.duplicate for receipt in box.add("t", [example(1), example(2)])] == [True, False]
    assert not [*inbox_of(tmp_path).rglob("*.part")]


def test_an_error_of_one_task_is_not_that_of_another(tmp_path: Path) -> None:
    box = Inbox(tmp_path)
    (inbox_of(tmp_path) / "t").mkdir(parents=True)
    (inbox_of(tmp_path) / "t" / "segments").touch()
    with pytest.raises(UnwritableError, match=r"segments.*Remove what is in its place"):
        box.add("t", [example(1)])
    box.add("u", [example(1)])


def test_a_run_that_is_gone_is_not_created_anew(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="gone: no such folder"):
        Inbox(tmp_path / "gone").add("t", [example(1)])


def test_a_damaged_segment_is_reported_and_the_others_are_used(tmp_path: Path) -> None:
    box = Inbox(tmp_path)
    box.add("t", [example(1)])
    box.add("t", [example(2)])
    path = next(shelf_folder(tmp_path, "t", "segments").glob("000001.*"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    later = Inbox(tmp_path)
    assert [each.duplicate for each in later.add("t", [example(2), example(3)])] == [True, False]
    assert [str(path) in line and "restore it from a copy" in line for line in later.damaged()] == [True]
    path.write_bytes(whole)
    assert later.add("t", [example(1)])[0].duplicate
    assert later.damaged() == []
    assert [segment.number for segment in waiting(tmp_path, "t").segments] == [1, 2, 3]


@pytest.mark.parametrize(
    "name", ["000001.2.jsonl", "mine.jsonl", "000001.2.0123456789abcdef.jsonl.part", "1.2.ab.jsonl"]
)
def test_other_files_are_no_segments(name: str) -> None:
    assert Segment.of(name) is None


def test_the_name_of_a_segment_is_read_back() -> None:
    segment = Segment(12, 3, "0123456789abcdef")
    assert Segment.of(segment.name) == segment


WRITER = """
import sys
from pathlib import Path
from ray_l4.store.inbox.inbox import Inbox
from ray_l4.store.inbox.example import Example
box, number = Inbox(Path(sys.argv[1])), 0
while True:
    for receipt in box.add("t", [Example(f"context {number}", "right?", ("yes",))]):
        print(number, flush=True)
    number += 1
"""


@pytest.mark.processes
def test_a_process_that_is_killed_has_kept_all_that_it_acknowledged(tmp_path: Path) -> None:
    acknowledged: set[int] = set()
    for kill_after in (3, 1, 7):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, tmp_path], stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        for _ in range(kill_after + len(acknowledged)):
            acknowledged.add(int(writer.stdout.readline()))
        writer.send_signal(signal.SIGKILL)
        acknowledged |= {int(line) for line in writer.stdout.read().splitlines()}
        writer.wait()
        writer.stdout.close()
    box = Inbox(tmp_path)
    box.add("t", [example(-1)])  # puts in order what was left
    contexts = [one.context for one in stored(tmp_path, "t")]
    assert len(set(contexts)) == len(contexts)
    assert {f"context {number}" for number in acknowledged} <= set(contexts)
    assert not [path for path in inbox_of(tmp_path).rglob(".*") if path.name != ".lock"]


def test_a_run_made_by_hand_has_an_empty_inbox(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    assert waiting(run.path, "mini.woz").examples == 0
