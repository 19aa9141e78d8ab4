"""Names of files and folders for whatever names users choose."""

from __future__ import annotations

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_l4.store.names import LONGEST, file_part, folder_name, make_new_folder, make_private

NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=400)


@given(NAMES)
def test_a_part_of_a_file_name_fits_and_needs_no_folder(name: str) -> None:
    part = file_part(name)
    assert part.isascii() and len(part) <= LONGEST and "/" not in part and "\0" not in part
    if len(quote(name, safe="")) <= LONGEST:
        assert part == quote(name, safe=""), "runs of earlier versions find their files"


@given(st.text("長い名前a=/%", min_size=20, max_size=60), st.text("名a=%", max_size=2), st.text("名a=%", max_size=2))
def test_different_names_have_different_files(common: str, one: str, other: str) -> None:
    assert (file_part(common + one) == file_part(common + other)) == (one == other)


@given(NAMES)
def test_a_folder_can_be_made_for_every_name(name: str) -> None:
    folder = folder_name(name)
    assert len(folder.encode()) <= LONGEST and "/" not in folder and "\0" not in folder


@pytest.mark.parametrize(("name", "folder"), [("a b", "a b"), ("a/b", "a-b"), ("größer", "größer"), ("x\ny", "x-y")])
def test_a_folder_keeps_a_readable_name(name: str, folder: str) -> None:
    assert folder_name(name) == folder


def test_long_names_that_begin_alike_have_different_folders() -> None:
    assert folder_name("長" * 300) != folder_name("長" * 301)


def test_everyone_who_asks_for_a_new_folder_gets_another(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        folders = list(threads.map(make_new_folder, [tmp_path / "runs" / "now"] * 16))
    assert sorted(folder.name for folder in folders) == sorted(["now", *(f"now-{number}" for number in range(2, 17))])
    assert all(folder.is_dir() for folder in folders)


@pytest.mark.parametrize("umask", [0o002, 0o022, 0o077])
@pytest.mark.parametrize("there", [True, False])
def test_a_private_folder_is_closed_to_others_whatever_the_umask(tmp_path: Path, umask: int, there: bool) -> None:
    folder = tmp_path / "a" / "b"
    if there:
        folder.mkdir(parents=True)
    before = os.umask(umask)
    try:
        make_private(folder)
        new = make_new_folder(tmp_path / "c")
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == stat.S_IMODE(new.stat().st_mode) == 0o700
