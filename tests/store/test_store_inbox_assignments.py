"""Segments and stages: each segment is learned exactly once, whatever is killed when."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_l4.errors import DamagedError, RunDirectoryError, UnwritableError
from ray_l4.store.extension import finish_extension
from ray_l4.store.inbox.assignments import left_aside, pending, set_aside, take, waiting
from ray_l4.store.inbox.held_out import MOST_TESTS, held_out
from ray_l4.store.inbox.inbox import Inbox
from ray_l4.store.inbox.places import RECORD, inbox_of, shelf_folder
from ray_l4.store.inbox.record import Assignment, assignments
from ray_l4.store.inbox.stage_data import stage_data, write_stage_data
from ray_l4.store.run_directory import RunDirectory
from tests.store.inbox_fixtures import KNOWN, example, extend, killed_at, new_run

NEW = "to/day"


def learned(run: RunDirectory) -> Counter[str]:
    """How often each example is in the data of a stage of the run's stream, to be learned or as a test."""
    folders = [task.path for task in run.experiment().stream if task.path is not None]
    paths = [path for folder in folders for path in folder.glob("*.jsonl")]
    return Counter(json.loads(line)["sample_id"] for path in paths for line in path.read_text().splitlines())


def rows(folder: Path, name: str) -> list[str]:
    """Contexts of the examples in a file of a stage, in alphabetical order."""
    path = folder / f"{name}.jsonl"
    return sorted(json.loads(line)["context"] for line in path.read_text().splitlines()) if path.exists() else []


def test_what_is_learned_does_not_depend_on_the_order_in_which_it_arrived(tmp_path: Path) -> None:
    files = []
    for name, order in (("one", (1, 2, 3, 4)), ("other", (4, 2, 1, 3))):
        run, box = new_run(tmp_path / name), Inbox(tmp_path / name)
        for number in order:
            box.add(KNOWN, [example(number)])
        (given,) = take(run, [KNOWN])
        files.append((given.folder(run.path) / "train.jsonl").read_bytes())
    assert files[0] == files[1]


def test_all_that_waits_of_a_task_is_given_to_one_stage(tmp_path: Path) -> None:
    run, box = new_run(tmp_path / "run"), Inbox(tmp_path / "run")
    box.add(KNOWN, [example(1), example(2)])
    box.add(KNOWN, [example(3)])
    (given,) = take(run, [KNOWN, "nothing here"])
    assert (given.number, given.task, len(given.segments), given.tests, given.held_out) == (1, KNOWN, 2, [], 0.0)
    assert rows(given.folder(run.path), "train") == ["context 1", "context 2", "context 3"]
    assert rows(given.folder(run.path), "test") == []  # the run has tests of it
    assert waiting(run.path, KNOWN).examples == 0


def test_what_is_pending_is_given_again_and_nothing_else(tmp_path: Path) -> None:
    run, box = new_run(tmp_path / "run"), Inbox(tmp_path / "run")
    box.add(KNOWN, [example(1)])
    first = take(run, [KNOWN])
    box.add(KNOWN, [example(2)])
    assert take(run, [KNOWN]) == first == pending(run)
    extend(run, first)
    assert pending(run) == []
    (second,) = take(run, [KNOWN])
    assert (second.number, rows(second.folder(run.path), "train")) == (2, ["context 2"])
    extend(run, [second])
    assert take(run, [KNOWN]) == []
    assert box.add(KNOWN, [example(1)])[0].duplicate  # also of what was learned


def test_an_extension_that_was_cut_off_is_not_made_again(tmp_path: Path) -> None:
    """The process was killed when the manifest had the new stage and ``config.yaml`` had not."""
    run = new_run(tmp_path / "run")
    Inbox(run.path).add(KNOWN, [example(1)])
    before = (run.path / "config.yaml").read_bytes()
    extend(run, take(run, [KNOWN]))
    (run.path / "config.yaml").write_bytes(before)
    Inbox(run.path).add(KNOWN, [example(2)])
    (given,) = take(run, [KNOWN])
    assert rows(given.folder(run.path), "train") == ["context 2"]
    extend(run, [given])
    assert list(learned(run).values()) == [1, 1]


def test_a_run_that_was_moved_knows_what_it_has_learned(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    Inbox(run.path).add(KNOWN, [example(1)])
    extend(run, take(run, [KNOWN]))
    moved = RunDirectory(run.path.rename(tmp_path / "elsewhere"))
    assert pending(moved) == take(moved, [KNOWN]) == []


def test_several_tasks_are_several_stages_of_one_record(tmp_path: Path) -> None:
    run, box = new_run(tmp_path / "run"), Inbox(tmp_path / "run")
    for task in (KNOWN, NEW):
        box.add(task, [example(number) for number in range(10)])
    found = take(run, [NEW, KNOWN, NEW])
    assert [(given.number, given.task) for given in found] == [(1, NEW), (2, KNOWN)]
    assert assignments(run.path) == found


def test_what_was_set_aside_keeps_nobody_waiting_and_is_not_given_again(tmp_path: Path) -> None:
    run, box = new_run(tmp_path / "run"), Inbox(tmp_path / "run")
    for task in (KNOWN, NEW):
        box.add(task, [example(number) for number in range(5)])
    bad, other = take(run, [NEW, KNOWN])
    box.add(NEW, [example(number) for number in range(5, 15)])
    set_aside(run, [bad.number], "too long")
    assert pending(run) == take(run, [KNOWN, NEW]) == [other]
    extend(run, [other])
    (later,) = take(run, [KNOWN, NEW])
    assert (later.number, later.task, later.held_out) == (3, NEW, 0.2), "the run knows nothing of the task yet"
    assert len(rows(later.folder(run.path), "test")) == 2
    extend(run, [later])
    assert pending(run) == take(run, [KNOWN, NEW]) == []
    assert waiting(run.path, NEW).examples == 0
    assert box.add(NEW, [example(1)])[0].duplicate, "its segments stay"
    assert [(each.number, each.failed) for each in assignments(run.path)] == [(1, "too long"), (2, None), (3, None)]


@pytest.mark.parametrize("by", ["learned by hand", "removed"])
def test_what_was_set_aside_is_shown_until_it_is_dealt_with(tmp_path: Path, by: str) -> None:
    run = new_run(tmp_path / "run")
    Inbox(run.path).add(KNOWN, [example(1)])
    (bad,) = take(run, [KNOWN])
    set_aside(run, {bad.number}, "too long")
    assert [each.number for each in left_aside(run)] == [1]
    if by == "removed":
        shutil.rmtree(bad.folder(run.path))
    else:
        extend(run, [bad])
    assert left_aside(run) == pending(run) == take(run, [KNOWN]) == []
    Inbox(run.path).add(KNOWN, [example(2)])
    assert [each.number for each in take(run, [KNOWN])] == [2]


def test_an_assignment_that_was_never_made_cannot_be_set_aside(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    Inbox(run.path).add(KNOWN, [example(1)])
    (given,) = take(run, [KNOWN])
    with pytest.raises(RunDirectoryError, match="there is no assignment 7"):
        set_aside(run, [given.number, 7], "too long")
    assert pending(run) == [given]


def test_a_new_task_holds_out_tests_and_its_next_stage_does_not(tmp_path: Path) -> None:
    run, box = new_run(tmp_path / "run"), Inbox(tmp_path / "run")
    box.add(NEW, [example(number) for number in range(10)])
    (given,) = take(run, [NEW])
    train, test = (rows(given.folder(run.path), name) for name in ("train", "test"))
    assert (len(train), len(test)) == (8, 2)
    assert sorted(train + test) == sorted(f"context {number}" for number in range(10))
    extend(run, [given])
    box.add(NEW, [example(number) for number in range(20)])
    (later,) = take(run, [NEW])
    assert (later.held_out, rows(later.folder(run.path), "test")) == (0.0, [])
    assert len(rows(later.folder(run.path), "train")) == 10


def test_tests_that_were_given_are_the_tests_and_not_learned(tmp_path: Path) -> None:
    run, box = new_run(tmp_path / "run"), Inbox(tmp_path / "run")
    box.add(NEW, [example(number) for number in range(4)])
    box.add(NEW, [example(3), example(9)], "tests")
    (given,) = take(run, [NEW])
    assert rows(given.folder(run.path), "train") == ["context 0", "context 1", "context 2"]
    assert rows(given.folder(run.path), "test") == ["context 3", "context 9"]


def test_one_example_alone_does_not_begin_a_new_task(tmp_path: Path) -> None:
    run, box = new_run(tmp_path / "run"), Inbox(tmp_path / "run")
    box.add(NEW, [example(1)])
    assert take(run, [NEW]) == []
    assert waiting(run.path, NEW).examples == 1
    box.add(NEW, [example(2)])
    assert len(take(run, [NEW])) == 1


def test_numbers_are_not_given_again_if_learned_segments_are_removed(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    Inbox(run.path).add(KNOWN, [example(1)])
    extend(run, take(run, [KNOWN]))
    for path in shelf_folder(run.path, KNOWN, "segments").iterdir():
        path.unlink()
    Inbox(run.path).add(KNOWN, [example(1)])
    assert [segment.number for segment in waiting(run.path, KNOWN).segments] == [2]


def test_a_record_that_is_lost_gives_no_number_again(tmp_path: Path) -> None:
    run, box = new_run(tmp_path / "run"), Inbox(tmp_path / "run")
    box.add(KNOWN, [example(1)])
    extend(run, take(run, [KNOWN]))
    (inbox_of(run.path) / RECORD).unlink()
    box.add(KNOWN, [example(2)])
    (given,) = take(run, [KNOWN])
    assert (given.number, rows(given.folder(run.path), "train")) == (2, ["context 1", "context 2"])


def test_a_damaged_segment_waits(tmp_path: Path) -> None:
    run, box = new_run(tmp_path / "run"), Inbox(tmp_path / "run")
    box.add(KNOWN, [example(1)])
    box.add(KNOWN, [example(2)])
    path = next(shelf_folder(run.path, KNOWN, "segments").glob("000001.*"))
    path.write_bytes(b"")
    (given,) = take(run, [KNOWN])
    assert rows(given.folder(run.path), "train") == ["context 2"]
    assert [segment.number for segment in waiting(run.path, KNOWN).segments] == [1]


def test_a_damaged_record_is_an_error_that_names_it(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    Inbox(run.path).add(KNOWN, [example(1)])
    take(run, [KNOWN])
    record = inbox_of(run.path) / RECORD
    record.write_text(record.read_text().replace("000001", "000002"))
    with pytest.raises(DamagedError, match=r"learned\.json: damaged"):
        take(run, [KNOWN])


def test_a_record_that_cannot_be_written_assigns_nothing(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    Inbox(run.path).add(KNOWN, [example(1)])
    (inbox_of(run.path) / RECORD).mkdir()
    with pytest.raises(UnwritableError, match=r"learned\.json"):
        take(run, [KNOWN])
    (inbox_of(run.path) / RECORD).rmdir()
    assert waiting(run.path, KNOWN).examples == 1
    assert len(take(run, [KNOWN])) == 1


def test_the_data_of_a_stage_is_made_again_as_it_was(tmp_path: Path) -> None:
    run, box = new_run(tmp_path / "run"), Inbox(tmp_path / "run")
    box.add(NEW, [example(number) for number in range(12)])
    (given,) = take(run, [NEW])
    folder = given.folder(run.path)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    assert write_stage_data(run.path, given) == folder
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    strange = Assignment(number=9, task=NEW, segments=["mine.jsonl"], when="")
    with pytest.raises(Exception, match="not the name of a segment"):
        stage_data(run.path, strange)


@given(st.sets(st.text("abcdef0123456789", min_size=4, max_size=8), max_size=60), st.integers(0, 3), st.randoms())
def test_held_out_examples_follow_from_their_ids_alone(ids: set[str], seed: int, random: object) -> None:
    drawn = held_out(ids, NEW, seed)
    shuffled = sorted(ids)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert held_out(shuffled, NEW, seed) == drawn <= ids
    assert (len(drawn) >= 1 and len(ids - drawn) >= 1) or len(ids) < 2
    assert abs(len(drawn) - 0.2 * len(ids)) <= 1
    assert held_out(ids, NEW, seed, 0.0) == set()


def test_no_more_tests_are_held_out_than_tell_something() -> None:
    assert len(held_out(map(str, range(10_000)), NEW, 0)) == MOST_TESTS


def _live(run: RunDirectory, arriving: Sequence[int], acknowledged: set[str], task: str) -> None:
    """What a service does: take what was begun, store what arrives, give it to stages, extend the run."""
    box = Inbox(run.path)
    for number in arriving:
        box.add(task, [example(number), example(number + 1)])
        acknowledged |= {example(number).id, example(number + 1).id}
    finish_extension(run)
    found = take(run, [KNOWN, NEW])
    if found:
        extend(run, found)


@settings(max_examples=25)
@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 8), max_size=3), st.integers(0, 60), st.sampled_from([KNOWN, NEW])),
        min_size=1,
        max_size=6,
    )
)
def test_nothing_is_lost_or_learned_twice_whenever_the_service_is_killed(
    lives: list[tuple[list[int], int, str]],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = new_run(Path(folder) / "run")
        acknowledged: dict[str, set[str]] = {KNOWN: set(), NEW: set()}
        for arriving, operation, task in lives:
            with killed_at(operation):
                _live(run, arriving, acknowledged[task], task)
        for _ in range(3):
            _live(run, [], set(), KNOWN)
        assert pending(run) == []
        found = learned(run)
        waits = {task: waiting(run.path, task).examples for task in (KNOWN, NEW)}
        assert waits[KNOWN] == 0
        assert waits[NEW] <= 1  # one alone does not begin a new task
        both = acknowledged[KNOWN] & acknowledged[NEW]
        assert all(count <= 1 + (id in both) or _in_both(run, id) for id, count in found.items())
        if not waits[NEW]:
            assert acknowledged[KNOWN] | acknowledged[NEW] <= set(found)


def _in_both(run: RunDirectory, id: str) -> bool:
    """Whether an example was stored for both tasks, though its sender was killed before both were acknowledged."""
    held = [box for box in (KNOWN, NEW) if Inbox(run.path).add(box, _all_examples(id))[0].duplicate]
    return len(held) == 2


def _all_examples(id: str) -> list:
    return [one for number in range(10) if (one := example(number)).id == id]


def test_every_single_operation_may_be_the_last(tmp_path: Path) -> None:
    """The same life, killed at its first operation, then at its second, and so on, until it ends by itself."""
    operation, ended = 0, False
    while not ended:
        run = new_run(tmp_path / str(operation))
        acknowledged: set[str] = set()
        with killed_at(operation):
            _live(run, [1, 4], acknowledged, KNOWN)
            ended = True
        assert pending(run) == [] or not ended
        _live(run, [7], acknowledged, KNOWN)
        _live(run, [], acknowledged, KNOWN)
        found = learned(run)
        assert set(found.values()) == {1}
        assert acknowledged <= set(found) <= {example(number).id for number in (1, 2, 4, 5, 7, 8)}
        assert waiting(run.path, KNOWN).examples == 0
        operation += 1
    assert operation > 15
