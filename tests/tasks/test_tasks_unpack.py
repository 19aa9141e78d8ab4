"""Archives, some of which try to write outside their folder."""

from __future__ import annotations

import io
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

from ray_l4.errors import DataError
from ray_l4.tasks.download.unpack import UnsafeArchiveError, extract

BAD_PATHS = ["../evil.txt", "data/../../evil.txt", "/tmp/evil.txt", "..\\evil.txt", "C:\\evil.txt"]


def zip_of(path: Path, *names: str) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in names:
            packed.writestr(name, f"contents of {name}")
    return path


def tar_of(path: Path, *members: str | tarfile.TarInfo) -> Path:
    with tarfile.open(path, f"w:{path.suffix[1:]}" if path.suffix != ".tar" else "w") as packed:
        for member in members:
            info = tarfile.TarInfo(member) if isinstance(member, str) else member
            content = f"contents of {info.name}".encode() if info.isfile() else b""
            info.size = len(content)
            packed.addfile(info, io.BytesIO(content))
    return path


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def files_under(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.tar.bz2", "a.tar.xz", "a.zip"])
def test_wanted_members_go_to_their_places(name: str, tmp_path: Path) -> None:
    pack = zip_of if name.endswith(".zip") else tar_of
    archive = pack(tmp_path / name, "data/one.txt", "data/two.txt", "data/three.txt")
    places = {"data/two.txt": tmp_path / "raw" / "deep" / "2.txt", "data/one.txt": tmp_path / "raw" / "1.txt"}
    assert extract(archive, places) == list(places.values())
    assert files_under(tmp_path / "raw") == ["1.txt", "deep/2.txt"]
    assert places["data/two.txt"].read_text(encoding="utf-8") == "contents of data/two.txt"


@pytest.mark.parametrize("bad", BAD_PATHS)
@pytest.mark.parametrize("name", ["a.tar.gz", "a.zip"])
def test_a_path_that_leads_outside_stops_everything(name: str, bad: str, tmp_path: Path) -> None:
    folder = tmp_path / "in" / "raw"
    folder.mkdir(parents=True)
    pack = zip_of if name.endswith(".zip") else tar_of
    archive = pack(folder / name, "good.txt", bad)
    for wanted in ("good.txt", bad):
        with pytest.raises(
            UnsafeArchiveError, match=r"would be written outside the target folder. Nothing was unpacked"
        ):
            extract(archive, {wanted: folder / "good.txt"})
    assert files_under(tmp_path) == [f"in/raw/{name}"]


@pytest.mark.parametrize(
    "member",
    [
        link("data/link", "../../outside"),
        link("data/link", "/etc/passwd"),
        link("data/link", "../../../etc/passwd", tarfile.LNKTYPE),
        link("data/device", "", tarfile.CHRTYPE),
        link("data/pipe", "", tarfile.FIFOTYPE),
    ],
)
def test_links_to_the_outside_and_devices_stop_everything(member: tarfile.TarInfo, tmp_path: Path) -> None:
    archive = tar_of(tmp_path / "a.tar", "good.txt", member)
    with pytest.raises(UnsafeArchiveError, match=r"data/.*Nothing was unpacked"):
        extract(archive, {"good.txt": tmp_path / "good.txt"})
    assert files_under(tmp_path) == ["a.tar"]


def test_a_link_in_a_zip_stops_everything(tmp_path: Path) -> None:
    archive = zip_of(tmp_path / "a.zip", "good.txt")
    info = zipfile.ZipInfo("link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(archive, "a") as packed:
        packed.writestr(info, "/etc/passwd")
    with pytest.raises(UnsafeArchiveError, match="'link' is a link"):
        extract(archive, {"good.txt": tmp_path / "good.txt"})
    assert files_under(tmp_path) == ["a.zip"]


def test_a_harmless_link_is_no_file_to_extract(tmp_path: Path) -> None:
    archive = tar_of(tmp_path / "a.tar", "good.txt", link("also", "good.txt"))
    extract(archive, {"good.txt": tmp_path / "out.txt"})
    with pytest.raises(DataError, match="contains no file 'also'"):
        extract(archive, {"also": tmp_path / "also.txt"})


def test_a_missing_member_is_named_before_anything_is_written(tmp_path: Path) -> None:
    archive = zip_of(tmp_path / "a.zip", "train_sample.csv")
    wanted = {"train_sample.csv": tmp_path / "a.csv", "train_samples.csv": tmp_path / "b.csv"}
    with pytest.raises(DataError, match=r"contains no file 'train_samples.csv'. Did you mean 'train_sample.csv'"):
        extract(archive, wanted)
    assert files_under(tmp_path) == ["a.zip"]


def test_what_is_no_archive_or_half_of_one(tmp_path: Path) -> None:
    (tmp_path / "page.zip").write_text("<html>", encoding="utf-8")
    with pytest.raises(DataError, match="neither a tar nor a zip archive"):
        extract(tmp_path / "page.zip", {"x": tmp_path / "x"})
    with tarfile.open(tmp_path / "big.tar.gz", "w:gz", compresslevel=0) as packed:
        info = tarfile.TarInfo("x")
        info.size = 1_000_000
        packed.addfile(info, io.BytesIO(bytes(1_000_000)))
    whole = (tmp_path / "big.tar.gz").read_bytes()
    (tmp_path / "half.tar.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="cannot be unpacked"):
        extract(tmp_path / "half.tar.gz", {"x": tmp_path / "x"})
    assert not (tmp_path / "x").exists()
