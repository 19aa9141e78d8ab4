"""The copy of a run directory: equal after every push, and resumable wherever a push was interrupted."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import fs

from ray_l4.config.cluster import ClusterConfig
from ray_l4.config.experiment import ExperimentConfig
from ray_l4.errors import ClusterError, ConfigError, RunDirectoryError
from ray_l4.store import mirror as mirror_module
from ray_l4.store.atomic import write_text
from ray_l4.store.mirror import Mirror, mirror_of
from ray_l4.store.run_directory import RunDirectory, RunState
from ray_l4.store.storage import Storage
from tests.store.unreliable import Unreliable, mock

EXPERIMENT = ExperimentConfig.model_validate(
    {"stream": ["mini.woz"], "model": {"from_scratch": {"layers": 1, "width": 32, "heads": 2}}}
)


@pytest.fixture(scope="module", autouse=True)
def without_fsync() -> Iterator[None]:
    """Skip fsync, which takes most of the time and matters only for power failures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        yield


def tree(folder: Path) -> dict[str, bytes]:
    """Return the contents of all files by path."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def copied(folder: Path) -> dict[str, bytes]:
    """Return the contents of a copy in a local folder, without its list of versions."""
    return {name: content for name, content in tree(folder).items() if name != ".mirror.json"}


def make_older(folder: Path) -> None:
    """Set all modification times to a minute ago, so that they differ from those of later versions."""
    for path in folder.rglob("*"):
        before = time.time_ns() - 60 * 10**9
        os.utime(path, ns=(before, before))


def mirror_in(files: Any, folder: Path | str) -> Mirror:
    """Return a mirror in a folder of the file system ``files``."""
    return Mirror("somewhere", "run", Storage(files, str(folder)))


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    created = RunDirectory.create(tmp_path / "runs" / "one", EXPERIMENT, ClusterConfig(), {"mirror": "one"})
    write_text(created.path / "scores" / "a.json", "{}")
    return created


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    (tmp_path / "nfs").mkdir()
    return tmp_path / "nfs"


def test_the_copy_has_all_files_of_the_run_and_no_temporary_ones(run: RunDirectory, storage: Path) -> None:
    expected = tree(run.path)
    for name in (".lock", ".x.json.17.part", ".checkpoint.9.part/model", ".checkpoint.9.old/model"):
        write_text(run.path / name, "debris")
    assert Mirror(str(storage), "one").push(run.path) == len(expected)
    assert copied(storage / "one") == expected


def test_only_changed_files_are_copied(run: RunDirectory, storage: Path) -> None:
    make_older(run.path)
    mirror = Mirror(str(storage), "one")
    mirror.push(run.path)
    assert mirror.push(run.path) == 0
    run.save_state(RunState(stages_done=1))
    write_text(run.path / "steps" / "b", "new")
    (run.path / "scores" / "a.json").unlink()
    assert mirror.push(run.path) == 2
    assert copied(storage / "one") == tree(run.path)


def test_another_process_does_not_copy_unchanged_files_again(run: RunDirectory, storage: Path) -> None:
    make_older(run.path)
    Mirror(str(storage), "one").push(run.path)
    write_text(run.path / "report.md", "done")
    assert Mirror(str(storage), "one").push(run.path) == 1
    (storage / "one" / "report.md").unlink()
    (storage / "one" / "stray").touch()
    assert Mirror(str(storage), "one").push(run.path) == 1, "the listed files are checked"
    assert copied(storage / "one") == tree(run.path)


def test_a_pulled_run_does_not_need_to_be_copied_again(run: RunDirectory, storage: Path, tmp_path: Path) -> None:
    make_older(run.path)
    Mirror(str(storage), "one").push(run.path)
    (storage / "one" / ".check-host.3.part").touch()
    (storage / "one" / "scores" / ".b.json.3.part").touch()
    expected = tree(run.path)
    shutil.rmtree(run.path)
    again = tmp_path / "elsewhere" / "again"
    Mirror.at(str(storage / "one")).pull(again)
    assert tree(again) == expected
    assert stat.S_IMODE(again.stat().st_mode) == 0o700, "closed to others as the run was"
    assert RunDirectory.open(again).experiment() == EXPERIMENT
    assert Mirror(str(storage), "one").push(again) == 0


@pytest.mark.parametrize("damaged", ["", "{", "[]", '{"a": 1}'])
def test_a_damaged_list_of_versions_costs_a_copy_and_nothing_else(
    damaged: str, run: RunDirectory, storage: Path, tmp_path: Path
) -> None:
    Mirror(str(storage), "one").push(run.path)
    (storage / "one" / ".mirror.json").write_text(damaged, encoding="utf-8")
    assert Mirror(str(storage), "one").push(run.path) > 1
    (storage / "one" / ".mirror.json").write_text(damaged, encoding="utf-8")
    Mirror.at(str(storage / "one")).pull(tmp_path / "again")
    assert tree(tmp_path / "again") == tree(run.path)


def test_files_that_change_or_disappear_during_a_push(run: RunDirectory, storage: Path) -> None:
    """The run continues between listing a folder and copying a file."""
    opened = mirror_module._open
    (run.path / "scores" / "z.json").touch()

    def changing_open(path: Path) -> Any:
        if path.name == "a.json":
            (run.path / "scores" / "z.json").unlink(missing_ok=True)
            run.save_state(RunState(stages_done=7))
        return opened(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mirror_module, "_open", changing_open)
        mirror = Mirror(str(storage), "one")
        mirror.push(run.path)
    copy = RunDirectory.open(storage / "one")
    assert copy.state().stages_done == 0, "the state from before the files were listed"
    mirror.push(run.path)
    assert copied(storage / "one") == tree(run.path)


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return a run directory after its first stage, and the same run directory after the run has finished."""
    folder = tmp_path_factory.mktemp("stages")
    run = RunDirectory.create(folder / "now", EXPERIMENT, ClusterConfig(), {})
    for stage in range(2):
        for file in ("model.safetensors", "config.json"):
            write_text(run.checkpoint(stage, 1, 0) / file, f"{file} of stage {stage}")
        write_text(run.path / "timeline.parquet", f"{stage + 1} stages")
        run.save_state(RunState(stages_done=stage + 1))
        if stage == 1:
            write_text(run.path / "summary.json", "{}")
        shutil.copytree(run.path, folder / f"{stage}")
    return [folder / "0", folder / "1"]


def resumable(copy: Path, folder: Path) -> int:
    """Return the finished stages of the copy, or -1 if it is not that of a run. Checks that their files exist."""
    try:
        Mirror.at(str(copy)).pull(folder)
    except RunDirectoryError:
        assert not folder.exists()
        return -1
    run = RunDirectory.open(folder)
    done = run.state().stages_done
    for stage in range(done):
        assert tree(run.checkpoint(stage, 1, 0)) == {
            name: f"{name} of stage {stage}".encode() for name in ("model.safetensors", "config.json")
        }
    assert int((folder / "timeline.parquet").read_text().split()[0]) >= done
    if (folder / "summary.json").exists():
        assert done == 2
    return done


@pytest.mark.parametrize("objects", [False, True], ids=["folder", "objects"])
def test_the_run_can_be_resumed_wherever_pushes_are_interrupted(
    tmp_path: Path, stages: list[Path], objects: bool
) -> None:
    """Interrupts two pushes at every one of their operations. A later process then completes the copy."""
    found, num_calls, interrupted = set(), 0, True
    while interrupted:
        folder = tmp_path / f"{num_calls}"
        folder.mkdir()
        files = Unreliable(fs.LocalFileSystem(), objects=objects)
        mirror = mirror_in(files, folder / "copy")
        files.fail_after(num_calls)
        interrupted = False
        for stage in stages:
            try:
                mirror.push(stage)
            except ClusterError as error:
                assert "somewhere/run cannot be written (the connection is broken). The run directory" in str(error)
                interrupted = True
        found.add(resumable(folder / "copy", folder / "pulled"))
        files.fail_after(float("inf"))
        mirror_in(files, folder / "copy").push(stages[1])
        assert copied(folder / "copy") == tree(stages[1])
        num_calls += 1
    assert num_calls > 20
    assert found == {-1, 1, 2}


@pytest.mark.parametrize("objects", [False, True], ids=["folder", "objects"])
def test_a_failed_push_is_completed_by_the_next_one(run: RunDirectory, tmp_path: Path, objects: bool) -> None:
    make_older(run.path)
    files = Unreliable(fs.LocalFileSystem(), objects=objects, heals=True)
    mirror = mirror_in(files, tmp_path / "copy")
    failures = 0
    for num_calls in range(60):
        files.fail_after(num_calls)
        try:
            mirror.push(run.path)
            break
        except ClusterError:
            failures += 1
    assert failures > 3
    assert copied(tmp_path / "copy") == tree(run.path)


def stamped(path: Path, content: str, modified: int) -> None:
    """Write a file and set its modification time in ns."""
    path.write_text(content)
    os.utime(path, ns=(modified, modified))


def test_a_file_that_changes_twice_in_an_instant(run: RunDirectory, storage: Path) -> None:
    """The clock is too coarse to distinguish the two versions."""
    mirror, score, now = Mirror(str(storage), "one"), run.path / "scores" / "a.json", time.time_ns()
    stamped(score, "first ", now)
    mirror.push(run.path)
    stamped(score, "second", now)
    mirror.push(run.path)
    assert copied(storage / "one") == tree(run.path)


def test_a_file_that_is_restored_after_an_interrupted_push(run: RunDirectory, tmp_path: Path) -> None:
    """The list must not have the older version while the copy has the newer one."""
    score, copy = run.path / "scores" / "a.json", tmp_path / "copy"
    files = Unreliable(fs.LocalFileSystem(), objects=True)
    make_older(run.path)
    stamped(score, "older", 10**18)
    mirror_in(files, copy).push(run.path)
    stamped(score, "newer", 2 * 10**18)
    for num_calls in range(20):
        files.fail_after(num_calls)
        with suppress(ClusterError):
            mirror_in(files, copy).push(run.path)
        if (copy / "scores" / "a.json").read_text() == "newer":
            break
    files.fail_after(float("inf"))
    stamped(score, "older", 10**18)
    mirror_in(files, copy).push(run.path)
    assert copied(copy) == tree(run.path)


def test_a_pull_that_fails_leaves_nothing(run: RunDirectory, tmp_path: Path) -> None:
    files = Unreliable(fs.LocalFileSystem())
    mirror_in(files, tmp_path / "copy").push(run.path)
    files.fail_after(4)
    with pytest.raises(ClusterError, match=r"cannot be read \(the connection is broken\)\. Is it reachable from here"):
        mirror_in(files, tmp_path / "copy").pull(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("precious")
    with pytest.raises(RunDirectoryError, match=r"taken: already exists and is not empty\. Choose another --run-dir"):
        mirror_in(files, tmp_path / "copy").pull(tmp_path / "taken")
    assert tree(tmp_path / "taken") == {"thesis.txt": b"precious"}


def test_a_folder_that_is_not_a_copy_cannot_be_pulled(storage: Path, tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match=r"nfs/one: not the copy of a run \(no config\.yaml and no state\.json"):
        Mirror(str(storage), "one").pull(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_the_storage_is_checked_before_the_run_starts(storage: Path, tmp_path: Path) -> None:
    Mirror(str(storage), "one").check(tmp_path / "one", new=True)
    assert tree(storage) == {}, "the test file has been removed"
    files = Unreliable(fs.LocalFileSystem())
    files.fail_after(2)
    with pytest.raises(
        ClusterError, match=r"run cannot be used \(the connection is broken\)\. Is it reachable and writable"
    ):
        mirror_in(files, storage).check(tmp_path / "one", new=True)
    with pytest.raises(ClusterError, match="no such folder"):
        Mirror(str(tmp_path / "missing"), "one").check(tmp_path / "one", new=True)
    with pytest.raises(ConfigError, match="cannot store at ftp"):
        Mirror("ftp://host", "one").check(tmp_path / "one", new=True)


def test_a_storage_that_never_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Hung(Unreliable):
        def create_dir(self, path: str, recursive: bool) -> None:
            time.sleep(5)

    monkeypatch.setattr(mirror_module, "_CHECK_TIMEOUT", 0.1)
    began = time.monotonic()
    with pytest.raises(ClusterError, match=r"cannot be used \(no answer in 0\.1 s\)"):
        mirror_in(Hung(fs.LocalFileSystem()), tmp_path / "copy").check(tmp_path / "run", new=True)
    assert time.monotonic() - began < 4


@pytest.mark.parametrize("direction", ["push", "pull"])
def test_a_push_or_pull_fails_if_the_storage_stops_responding(
    direction: str, run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next push waits for the one that hangs, and completes the copy."""

    class Hangs(Unreliable):
        answers = threading.Event()

        def open_input_stream(self, path: str) -> Any:
            assert self.answers.wait(30)
            return super().open_input_stream(path)

        def move(self, source: str, target: str) -> None:
            assert self.answers.wait(30)
            super().move(source, target)

    hangs = Hangs(fs.LocalFileSystem())
    hangs.answers.set()
    mirror_in(hangs, tmp_path / "copy").push(run.path)
    write_text(run.path / "scores" / "b.json", "{}")
    hangs.answers.clear()
    mirror = mirror_in(hangs, tmp_path / "copy")
    monkeypatch.setattr(mirror_module, "_STALL_TIMEOUT", 0.2)
    with pytest.raises(ClusterError, match=r"\(no answer in 0\.2 s\)"):
        mirror.push(run.path) if direction == "push" else mirror.pull(tmp_path / "back")
    hangs.answers.set()
    monkeypatch.setattr(mirror_module, "_STALL_TIMEOUT", 30.0)
    mirror.push(run.path)
    assert copied(tmp_path / "copy") == tree(run.path)


@pytest.mark.slow
def test_an_unreachable_object_store_is_reported_in_time(tmp_path: Path) -> None:
    """Nothing listens on port 9 of this machine."""
    mirror = Mirror("s3://key:secret@bucket/x?endpoint_override=127.0.0.1:9&scheme=http&region=none", "one")
    with pytest.raises(ClusterError, match=r"storage_path: s3://key:\*\*\*@bucket/x/one.* cannot be used .*onnect"):
        mirror.check(tmp_path / "one", new=True)


def test_a_new_run_does_not_replace_another(run: RunDirectory, storage: Path, tmp_path: Path) -> None:
    Mirror(str(storage), "one").push(run.path)
    before = tree(storage)
    with pytest.raises(RunDirectoryError, match=r"nfs/one: already contains a run.*ray-l4 resume .*nfs/one --run"):
        Mirror(str(storage), "one").check(tmp_path / "one", new=True)
    Mirror(str(storage), "one").check(run.path, new=False)
    config = run.path / "config.yaml"
    config.write_text(f"# mine\n{config.read_text()}")
    Mirror(str(storage), "one").check(run.path, new=False)  # a comment makes no other run
    changed = EXPERIMENT.model_copy(update={"seed": 1})
    other = RunDirectory.create(tmp_path / "other", changed, ClusterConfig(), {})
    with pytest.raises(
        RunDirectoryError, match=r"nfs/one: contains another run than .*other\. Choose another storage_path"
    ):
        Mirror(str(storage), "one").check(other.path, new=False)
    assert tree(storage) == before


def test_a_run_is_not_copied_into_itself(run: RunDirectory) -> None:
    for address, name in [(run.path.parent, "one"), (run.path, "copy"), (run.path.parent.parent, "runs")]:
        with pytest.raises(RunDirectoryError, match="one contains the other"):
            Mirror(str(address), name).check(run.path, new=True)


def test_the_copy_keeps_its_name(run: RunDirectory, storage: Path, tmp_path: Path) -> None:
    profile = ClusterConfig(storage_path=str(storage))
    moved = run.path.rename(tmp_path / "renamed")
    mirror = mirror_of(RunDirectory.open(moved), profile)
    assert mirror is not None
    assert mirror.address == str(storage / "one")
    older = RunDirectory.create(tmp_path / "older", EXPERIMENT, profile, {"command": "from before copies existed"})
    mirror = mirror_of(older, profile)
    assert mirror is not None
    assert mirror.address == str(storage / "older")
    assert mirror_of(older, ClusterConfig()) is None


NAMES = ["state.json", "summary.json", "scores/a", "scores/b", "teachers/state.json", "teachers/x/y", "größe %.txt"]
changes = st.one_of(
    st.tuples(st.just("write"), st.sampled_from(NAMES), st.binary(max_size=3)),
    st.tuples(st.just("remove"), st.sampled_from(NAMES), st.none()),
    st.tuples(st.just("push"), st.integers(0, 30), st.none()),
    st.tuples(st.just("restart"), st.none(), st.none()),
    st.tuples(st.just("age"), st.none(), st.none()),
)
FILE_SYSTEMS: dict[str, Callable[[Path], Any]] = {
    "local": lambda folder: Unreliable(fs.LocalFileSystem(), heals=True),
    "objects": lambda folder: Unreliable(fs.LocalFileSystem(), objects=True, heals=True),
    "memory": lambda folder: Unreliable(mock()),
    "subtree": lambda folder: Unreliable(fs.SubTreeFileSystem(str(folder), fs.LocalFileSystem())),
}


@pytest.mark.parametrize("kind", FILE_SYSTEMS)
@settings(max_examples=40, deadline=None)
@given(steps=st.lists(changes, max_size=12))
def test_after_any_history_a_push_makes_the_copy_equal(kind: str, steps: list[tuple[str, Any, Any]]) -> None:
    """Files are created, changed twice in an instant and deleted, pushes fail, and the process restarts."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = folder / "run"
        run.mkdir()
        files = FILE_SYSTEMS[kind](folder)
        copy = "copy" if kind in ("memory", "subtree") else str(folder / "copy")
        mirror = mirror_in(files, copy)
        for what, which, content in steps:
            match what:
                case "write":
                    write_text(run / which, content.hex())
                case "remove":
                    (run / which).unlink(missing_ok=True)
                case "age":
                    make_older(run)
                case "restart":
                    mirror = mirror_in(files, copy)
                case "push":
                    files.fail_after(which)
                    with suppress(ClusterError):
                        mirror.push(run)
                    files.fail_after(float("inf"))
        mirror.push(run)
        storage = Storage(files, copy)
        assert {file: storage.read(file) for file in storage.sizes() if file != ".mirror.json"} == tree(run)
        make_older(run)
        mirror.push(run)
        assert mirror_in(files, copy).push(run) == 0
