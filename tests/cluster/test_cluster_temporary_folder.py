"""Ray's temporary folder: a path too long for its sockets, and a full disk, are named before Ray starts."""

from __future__ import annotations

import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from ray_l4.cluster.connection import check_cluster
from ray_l4.cluster.temporary_folder import (
    check_temporary_folder,
    full_temporary_folder,
    refuse_shared,
    temporary_folder,
)
from ray_l4.config.cluster import ClusterConfig
from ray_l4.errors import ClusterError

SOCKET = "ray/session_2026-11-28_21-00-00_123456_4194303/sockets/plasma_store"
Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def no_folder_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_TMPDIR", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)


def folder_of_length(tmp_path: Path, length: int) -> Path:
    """A folder of which a socket's path has this many bytes, some of them in letters of two."""
    missing = length - len(f"{tmp_path}//{SOCKET}")
    return tmp_path / ("ü" * (missing // 2) + "x" * (missing % 2))


@pytest.mark.parametrize("variable", ["TMPDIR", "RAY_TMPDIR"])
@pytest.mark.parametrize(("length", "fits"), [(107, True), (108, False), (160, False)])
def test_the_longest_path_is_that_of_a_socket(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, variable: str, length: int, fits: bool
) -> None:
    short = Path("/tmp") / tmp_path_factory.getbasetemp().parent.name[:9]
    folder = folder_of_length(short, length)
    monkeypatch.setenv(variable, str(folder))
    try:
        if fits:
            check_temporary_folder()
            return
        for check in (check_temporary_folder, lambda: check_cluster(1, ClusterConfig())):
            with pytest.raises(ClusterError, match=rf"{variable}: the path .* is too long .* RAY_TMPDIR=/tmp ray-l4"):
                check()
    finally:
        shutil.rmtree(short, ignore_errors=True)


def test_a_run_in_one_process_needs_no_such_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / ("x" * 150)))
    check_cluster(1, ClusterConfig.model_validate({"exchange": {"transport": "in_process"}}))


def test_a_full_disk_and_a_folder_that_cannot_be_made_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = Path("/tmp/ray-l4-test")
    monkeypatch.setenv("RAY_TMPDIR", str(short))
    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage(1 << 30, 1 << 30, 3 << 20))
    with pytest.raises(ClusterError, match=r"RAY_TMPDIR: 3 MiB are free.*folder /tmp/ray-l4-test/ray is full"):
        check_temporary_folder()
    shutil.rmtree(short)
    monkeypatch.setenv("RAY_TMPDIR", "/dev/null")
    with pytest.raises(ClusterError, match="RAY_TMPDIR: Ray cannot create a folder in /dev/null"):
        check_temporary_folder()
    assert "ray.object_store_memory" in full_temporary_folder()


def test_the_default_folder_is_the_users_alone(tmp_path: Path) -> None:
    folder, variable = temporary_folder()
    assert (folder, variable) == (Path(f"/tmp/ray-l4-{os.getuid()}"), None)
    check_temporary_folder()
    assert folder.stat().st_mode & 0o777 == 0o700
    private, shared, link = (tmp_path / name for name in ("private", "shared", "link"))
    private.mkdir(mode=0o700)
    shared.mkdir()
    shared.chmod(0o755)
    link.symlink_to(private)
    refuse_shared(private)
    for refused in (shared, link):
        with pytest.raises(ClusterError, match=r"not a folder of yours with mode 700.* chmod 700 .* RAY_TMPDIR="):
            refuse_shared(refused)
