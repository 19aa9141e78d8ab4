"""Checksums of folders: whatever happens to a file of a checkpoint or state is noticed, or means nothing."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from ray_l4.errors import DamagedError, RunDirectoryError
from ray_l4.store.checksums import SUMS, damaged_in, remove_sums, write_sums
from ray_l4.store.records import read_guard, read_weights, write_checkpoint, write_guard
from ray_l4.store.run_directory import RunDirectory, RunState, read_json
from ray_l4.store.sealed import SEAL, write_record
from ray_l4.store.states import Learning, Position, read_state, write_state
from ray_l4.store.weight_files import damaged_file

WEIGHTS = np.frombuffer(save({"a": np.arange(40, dtype=np.float32), "b": np.ones((2, 3), np.float32)}), np.uint8)
ROWS = [{"stage": 0, "epoch": 1, "step": step, "student": 0, "loss": 1.0 / (step + 1)} for step in range(3)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    path = tmp_path_factory.mktemp("run")
    (path / "tokenizer").mkdir()
    (path / "tokenizer/tokenizer.json").write_text('{"version": "1.0"}')
    found = RunDirectory(path)
    write_checkpoint(found.checkpoint(0, 1, 0), WEIGHTS, {"model_type": "gpt2", "n_embd": 8}, path / "tokenizer")
    position = Position(1, [Learning(0, 0, 0, 3)], {"0": [{"0": 1.5}]})
    write_state(found, position, ROWS, {0: [WEIGHTS]})
    for stage in range(2):
        write_guard(found, stage, 0, WEIGHTS)
    return found


@st.composite
def damages(draw: st.DrawFn, data: bytes) -> bytes:
    """A flip of one or more bits of a byte, or a file that ends early."""
    if draw(st.booleans()):
        return data[: draw(st.integers(0, len(data) - 1))]
    position = draw(st.integers(0, len(data) - 1))
    return data[:position] + bytes([data[position] ^ draw(st.integers(1, 255))]) + data[position + 1 :]


def means_the_same(path: Path, data: bytes) -> bool:
    """Whether a changed list of checksums names the same ones: upper-case digits, say, do not."""
    if path.name != SUMS:
        return False
    lines = [line.split(maxsplit=1) for line in data.decode("utf-8", "replace").splitlines()]
    return lines == [line.split(maxsplit=1) for line in path.read_text().splitlines()]


@given(data=st.data())
def test_any_damage_to_a_checkpoint_or_a_state_is_noticed(run: RunDirectory, data: st.DataObject) -> None:
    folders = [run.checkpoint(0, 1, 0), run.path / "states/stage-0.steps-3"]
    folder = data.draw(st.sampled_from(folders))
    path = data.draw(st.sampled_from(sorted(folder.iterdir())))
    whole = path.read_bytes()
    damaged = data.draw(damages(whole))
    if means_the_same(path, damaged) or is_list_without_last_lines(path, whole, damaged):
        return
    path.write_bytes(damaged)
    try:
        if folder == folders[0]:
            assert (damaged_file(folder) or "").startswith(str(folder))
        else:
            with pytest.raises(DamagedError, match=str(folder)):
                read_state(folder)
    finally:
        path.write_bytes(whole)


def is_list_without_last_lines(path: Path, whole: bytes, damaged: bytes) -> bool:
    """Whether a list was cut off between two lines behind all weights: what is not named any more is not needed."""
    cut = whole.startswith(damaged) and (damaged.endswith(b"\n") or whole[len(damaged) :].startswith(b"\n"))
    return path.name == SUMS and cut and b".safetensors" not in whole[len(damaged) :]


def test_all_is_read_back(run: RunDirectory) -> None:
    assert damaged_file(run.checkpoint(0, 1, 0)) is None
    assert read_weights(run.checkpoint(0, 1, 0)).tobytes() == WEIGHTS.tobytes()
    state = read_state(run.path / "states/stage-0.steps-3")
    assert [row["loss"] for row in state.figures] == [row["loss"] for row in ROWS]
    assert state.parts[0][0].tobytes() == WEIGHTS.tobytes()


def test_a_person_can_check_a_folder(run: RunDirectory) -> None:
    for folder in (run.checkpoint(0, 1, 0), run.path / "states/stage-0.steps-3", run.path / "guards"):
        done = subprocess.run(["sha256sum", "--strict", "-c", SUMS], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert len(done.stdout.splitlines()) == len(list(folder.iterdir())) - 1


def test_folders_of_earlier_versions_are_read(run: RunDirectory, tmp_path: Path) -> None:
    for folder in (run.checkpoint(0, 1, 0), run.path / "states/stage-0.steps-3"):
        (shutil.copytree(folder, tmp_path / folder.name) / SUMS).unlink()
    assert read_weights(tmp_path / "student-0").tobytes() == WEIGHTS.tobytes()
    assert read_state(tmp_path / "stage-0.steps-3").position.workers[0].next_step == 3
    (tmp_path / "stage-0.steps-3/student-0.rank-0.safetensors").write_bytes(WEIGHTS.tobytes()[:-1])
    with pytest.raises(DamagedError):
        read_state(tmp_path / "stage-0.steps-3")


def test_guards_share_a_list(run: RunDirectory) -> None:
    guard = run.guard(1, 0)
    whole = guard.read_bytes()
    guard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(DamagedError, match=r"stage-1\.student-0\.safetensors is damaged: its SHA-256"):
        read_guard(run, 1, 0)
    assert read_guard(run, 0, 0).tobytes() == WEIGHTS.tobytes()
    write_guard(run, 1, 0, WEIGHTS)
    assert read_guard(run, 1, 0).tobytes() == WEIGHTS.tobytes()
    guard.unlink()
    assert "is missing" in (damaged_in(run.path / "guards") or "")
    remove_sums(run.path / "guards", {guard.name})
    assert damaged_in(run.path / "guards") is None
    write_guard(run, 1, 0, WEIGHTS)


def test_a_list_of_another_tool(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(WEIGHTS.tobytes())
    write_sums(tmp_path)
    (tmp_path / SUMS).write_text((tmp_path / SUMS).read_text().replace("  ", " *./"))
    assert damaged_file(tmp_path) is None


@given(data=st.data())
def test_a_changed_byte_of_a_record_is_noticed_or_means_nothing(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "state.json"
    run = RunDirectory(path.parent)
    state = RunState(stages_done=2, wall_seconds=12.25, peak_memory_bytes={"student-0": 2**31}, lost_students={1: "ä"})
    run.save_state(state)
    assert run.state() == state
    whole = path.read_bytes()
    path.write_bytes(data.draw(damages(whole)))
    try:
        found = run.state()
    except RunDirectoryError as error:
        assert str(error).startswith(f"{path}: ")
    else:
        assert found == state


def test_a_record_stays_readable(tmp_path: Path) -> None:
    """Its keys are where they were, the seal comes last; changed layout is no damage, changed values are."""
    path = tmp_path / "a.json"
    write_record(path, {"headline": "em", "values": {"em": 12.5}, 1: (2, 3)})
    raw = json.loads(path.read_text())
    assert list(raw) == ["headline", "values", "1", SEAL]
    assert raw[SEAL]["format"] == 1
    assert read_json(path) == {"headline": "em", "values": {"em": 12.5}, "1": [2, 3]}
    path.write_text(json.dumps(dict(reversed(raw.items()))))
    assert read_json(path)["values"] == {"em": 12.5}
    path.write_text(json.dumps(raw | {"values": {"em": 13.5}}))
    with pytest.raises(DamagedError, match=rf"{path}: damaged: .*remove its key 'ray_l4'"):
        read_json(path)
    path.write_text(json.dumps({"values": {"em": 13.5}}))
    assert read_json(path) == {"values": {"em": 13.5}}, "of an earlier version"
    path.write_text(json.dumps(raw | {SEAL: {"format": 2, "sha256": ""}}))
    with pytest.raises(RunDirectoryError, match="a later version of ray-l4"):
        read_json(path)
