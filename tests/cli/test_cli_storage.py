"""A run whose directory is copied as it grows, and a run that is resumed from such a copy."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ray_l4.store.run_directory import RunDirectory, RunState
from tests.cli.cli_fixtures import IN_PROCESS, InThisProcess, write_experiment

pytestmark = pytest.mark.end_to_end


def files(folder: Path) -> dict[str, bytes]:
    """Return the contents of all files of a run, except those that belong to one copy alone."""
    paths = (
        path for path in folder.rglob("*") if path.is_file() and not path.name.startswith((".lock", ".mirror.json"))
    )
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_a_run_is_copied_and_resumed_from_its_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: InThisProcess
) -> None:
    (tmp_path / "nfs").mkdir()
    monkeypatch.chdir(tmp_path)
    begin = ["run", write_experiment(tmp_path), "--cluster", IN_PROCESS, "--set", "cluster.storage_path=nfs"]
    result = command(*begin, "--run-dir", "first")
    assert result.returncode == 0, result.stderr
    assert f"copy of the run directory: {tmp_path / 'nfs' / 'first'}" in result.stdout
    expected = files(tmp_path / "first")
    assert files(tmp_path / "nfs" / "first") == expected
    assert {"report.md", "summary.json", "state.json", "config.yaml"} < expected.keys()

    # The state after the machine of the run was lost during its second task.
    shutil.rmtree(tmp_path / "first")
    copy = RunDirectory(tmp_path / "nfs" / "first")
    copy.save_state(RunState(stages_done=1))
    for path in (*copy.path.glob("s*/stage-1*"), copy.path / "checkpoints" / "stage-1", copy.path / "summary.json"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    result = command("resume", copy.path, "--run-dir", "second")
    assert result.returncode == 0, result.stderr
    assert f"copied {copy.path} to second" in result.stdout
    assert "resumed after mini.woz (1 of 2 stages)" in result.stdout
    found = files(tmp_path / "elsewhere" / "second")
    assert {name: found.get(name) for name in expected if name.endswith(".safetensors")} == {
        name: content for name, content in expected.items() if name.endswith(".safetensors")
    }
    assert files(copy.path) == found, "the copy is updated where it was, under its own name"


def test_storage_that_cannot_be_used_is_an_error_before_anything_is_written(
    tmp_path: Path, command: InThisProcess
) -> None:
    (tmp_path / "nfs" / "first").mkdir(parents=True)
    (tmp_path / "nfs" / "first" / "config.yaml").touch()
    begin = ["run", write_experiment(tmp_path), "--cluster", IN_PROCESS, "--run-dir", tmp_path / "first", "--set"]
    for storage, code, words in [
        (tmp_path / "missing", 6, "no such folder. Create it, or mount the disk it is on."),
        ("ftp://host/x", 2, "cannot store at ftp://"),
        (tmp_path / "nfs", 5, "already contains a run"),
    ]:
        result = command(*begin, f"cluster.storage_path={storage}")
        assert result.returncode == code
        assert words in " ".join(result.stderr.split())
    result = command("resume", "ftp://host/x")
    assert result.returncode == 2
    assert "cannot store at ftp://" in result.stderr
    assert not (tmp_path / "first").exists()
