"""Download of one file from a local HTTP server that fails in the ways that servers do."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_l4.errors import ConfigError
from ray_l4.tasks.download.checksum import checksum_of, matches
from ray_l4.tasks.download.transfer import PAUSES_S, DownloadError, fetch
from tests.file_server import FileServer, serving

CONTENT = bytes(range(256)) * 1000
GOOD = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"


@pytest.fixture
def server() -> Iterator[FileServer]:
    with serving() as state:
        state.files["a.bin"] = CONTENT
        yield state


class Download:
    """A call of ``fetch`` into a folder that records progress and the pauses it would have made."""

    def __init__(self, server: FileServer, folder: Path) -> None:
        self.url, self.path = f"{server.url}/a.bin", folder / "deep" / "a.bin"
        self.part = self.path.with_name("a.bin.part")
        self.progress: list[tuple[int, int | None]] = []
        self.pauses: list[float] = []

    def __call__(self, checksum: str = GOOD, url: str | None = None) -> None:
        fetch(url or self.url, self.path, checksum, lambda *seen: self.progress.append(seen), self.pauses.append)

    def leave_part(self, content: bytes) -> None:
        self.part.parent.mkdir(parents=True)
        self.part.write_bytes(content)


@pytest.fixture
def download(server: FileServer, tmp_path: Path) -> Download:
    return Download(server, tmp_path)


def test_a_file_arrives_complete_and_progress_is_reported(server: FileServer, download: Download) -> None:
    download()
    assert download.path.read_bytes() == CONTENT
    assert not download.part.exists()
    done = [received for received, _ in download.progress]
    assert done == sorted(done)
    assert (done[0], done[-1]) == (0, len(CONTENT))
    assert len(set(done)) > 2
    assert {total for _, total in download.progress} == {len(CONTENT)}


def test_a_broken_connection_is_resumed(server: FileServer, download: Download) -> None:
    server.cuts = [100_000, 50_000]
    download()
    assert download.path.read_bytes() == CONTENT
    assert server.requests == [
        ("a.bin", None, 100_000),
        ("a.bin", "bytes=100000-", 50_000),
        ("a.bin", "bytes=150000-", len(CONTENT) - 150_000),
    ]
    assert download.pauses == [PAUSES_S[0]] * 2  # each try received some bytes
    assert download.progress[-1] == (len(CONTENT), len(CONTENT))


def test_an_earlier_part_is_continued(server: FileServer, download: Download) -> None:
    download.leave_part(CONTENT[:200_000])
    download()
    assert download.path.read_bytes() == CONTENT
    assert server.requests == [("a.bin", "bytes=200000-", len(CONTENT) - 200_000)]


def test_a_complete_part_is_only_checked(server: FileServer, download: Download) -> None:
    download.leave_part(CONTENT)
    download()
    assert download.path.read_bytes() == CONTENT
    assert server.requests == [("a.bin", f"bytes={len(CONTENT)}-", 0)]


def test_a_server_without_ranges_sends_all_of_it_again(server: FileServer, download: Download) -> None:
    server.ranges, server.cuts = False, [100_000]
    download()
    assert download.path.read_bytes() == CONTENT
    assert [sent for _, _, sent in server.requests] == [100_000, len(CONTENT)]


@pytest.mark.parametrize("older", [b"another file" * 10, CONTENT + b"more"])
def test_the_part_of_another_file_is_replaced(older: bytes, server: FileServer, download: Download) -> None:
    download.leave_part(older)
    download()
    assert download.path.read_bytes() == CONTENT
    assert [wanted for _, wanted, _ in server.requests] == [f"bytes={len(older)}-", None]


def test_a_wrong_checksum_leaves_nothing(server: FileServer, download: Download) -> None:
    server.files["a.bin"] = b"not what was published"
    found = hashlib.sha256(server.files["a.bin"]).hexdigest()
    with pytest.raises(DownloadError) as caught:
        download()
    for words in (download.url, GOOD, found, "removed"):
        assert words in str(caught.value)
    assert list(download.path.parent.iterdir()) == []
    assert len(server.requests) == 1


@pytest.mark.parametrize(("status", "advice"), [(404, "get it from elsewhere"), (403, "a mirror may help")])
def test_a_refusal_is_final(status: int, advice: str, server: FileServer, download: Download) -> None:
    server.statuses = [status] * 9
    with pytest.raises(DownloadError, match=rf"a\.bin: HTTP status {status} .*{advice}"):
        download()
    assert len(server.requests) == 1
    assert download.pauses == []


def test_a_busy_server_is_retried(server: FileServer, download: Download) -> None:
    server.statuses = [503, 429]
    download()
    assert download.path.read_bytes() == CONTENT
    assert download.pauses == list(PAUSES_S[:2])


@pytest.mark.parametrize("cuts", [[1000] * 20, [1000, 500] * 10])
def test_after_the_last_try_the_part_is_kept(cuts: list[int], server: FileServer, download: Download) -> None:
    server.ranges, server.cuts = False, cuts  # after the first try, no try receives a new byte
    with pytest.raises(DownloadError, match=r"closed after 1000 of 256000 bytes, after 5 tries\. 1000 bytes are kept"):
        download()
    assert download.pauses == list(PAUSES_S)
    assert download.part.stat().st_size == 1000
    assert not download.path.exists()


def test_an_unreachable_server_is_an_error(download: Download) -> None:
    with serving() as gone:
        url = f"{gone.url}/a.bin"
    with pytest.raises(DownloadError, match=r"refused, after 5 tries"):
        download(url=url)


def test_other_schemes_are_refused(download: Download) -> None:
    with pytest.raises(ConfigError, match="expected an address that starts with http"):
        download(url="file:///etc/hostname")


def test_git_ids_are_gits_own(download: Download, server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(CONTENT)
    ours = checksum_of(tmp_path / "x", "git")
    theirs = subprocess.run(["git", "hash-object", "x"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ours == f"git:{theirs.stdout.strip()}"
    download(ours)
    assert matches(download.path, GOOD)
    assert not matches(download.path, "sha256:" + "0" * 64)
