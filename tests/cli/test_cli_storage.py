"""A run directory that is copied as it grows, and a run that is resumed from the copy."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest

from ray_l4.cli.main import main
from ray_l4.store.run_directory import RunDirectory, RunState
from tests.cli.cli_fixtures import IN_PROCESS, write_experiment

pytestmark = pytest.mark.end_to_end


def command(arguments: Sequence[object], monkeypatch: pytest.MonkeyPatch) -> int:
    """Return the exit status of a command, called in this process to save the import of PyTorch."""
    monkeypatch.setattr("sys.argv", ["ray-l4", *map(str, arguments)])
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as ended:
            main()
    finally:
        signal.signal(signal.SIGTERM, on_sigterm)
    return int(ended.value.code or 0)


def files(folder: Path) -> dict[str, bytes]:
    """Return the files of a run directory, without those that belong to one copy of it."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name not in (".lock", ".mirror.json"))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_a_run_is_copied_and_resumed_from_its_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "nfs").mkdir()
    monkeypatch.chdir(tmp_path)
    begin = ["run", write_experiment(tmp_path), "--cluster", IN_PROCESS, "--set", "cluster.storage_path=nfs"]
    assert command([*begin, "--run-dir", "first"], monkeypatch) == 0
    assert f"copy of the run directory: {tmp_path / 'nfs' / 'first'}" in capsys.readouterr().out
    expected = files(tmp_path / "first")
    assert files(tmp_path / "nfs" / "first") == expected
    assert {"report.md", "summary.json", "state.json", "config.yaml"} < expected.keys()

    # As it was when the machine of the run was lost, in its second task.
    shutil.rmtree(tmp_path / "first")
    copy = RunDirectory(tmp_path / "nfs" / "first")
    copy.save_state(RunState(stages_done=1))
    for path in (*copy.path.glob("s*/stage-1*"), copy.path / "checkpoints" / "stage-1", copy.path / "summary.json"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert command(["resume", copy.path, "--run-dir", "second"], monkeypatch) == 0
    output = capsys.readouterr().out
    assert f"copied {copy.path} to second" in output
    assert "resumed after mini.woz (1 of 2 stages)" in output
    found = files(tmp_path / "elsewhere" / "second")
    assert {name: found.get(name) for name in expected if name.endswith(".safetensors")} == {
        name: content for name, content in expected.items() if name.endswith(".safetensors")
    }
    assert files(copy.path) == found, "the copy continues under its own name"


def test_an_unusable_storage_path_is_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "nfs" / "first").mkdir(parents=True)
    (tmp_path / "nfs" / "first" / "config.yaml").touch()
    begin = ["run", write_experiment(tmp_path), "--cluster", IN_PROCESS, "--run-dir", tmp_path / "first", "--set"]
    for storage, code, words in [
        (tmp_path / "missing", 6, "no such folder. Create it, or mount the disk it is on."),
        ("ftp://host/x", 2, "cannot store at ftp://"),
        (tmp_path / "nfs", 5, "already contains a run"),
    ]:
        assert command([*begin, f"cluster.storage_path={storage}"], monkeypatch) == code
        assert words in " ".join(capsys.readouterr().err.split())
    assert command(["resume", "ftp://host/x"], monkeypatch) == 2
    assert "cannot store at ftp://" in capsys.readouterr().err
    assert not (tmp_path / "first").exists()
