"""Download of one file over HTTP: resumable, verified, and given its final name only once it is complete."""

from __future__ import annotations

import http.client
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote, urlsplit

from ray_l4.errors import ConfigError, DataError
from ray_l4.tasks.download.checksum import checksum_of

TIMEOUT_S = 30.0
"""Longest wait for the server's next bytes, in seconds."""
PAUSES_S = (1.0, 2.0, 4.0, 8.0)
"""Pauses before each retry, in seconds. A try that received bytes starts the list again."""
BLOCK = 1 << 16
"""Bytes read at a time."""

OnBytes = Callable[[int, int | None], None]
"""Called with the bytes received so far and the total (None if the server does not give it)."""

TRANSIENT = (urllib.error.URLError, ConnectionError, TimeoutError, ssl.SSLError, http.client.HTTPException)
"""Errors that a retry may fix. A full disk is not one of them."""

TRANSIENT_STATUS = {
    HTTPStatus.REQUEST_TIMEOUT,
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.INTERNAL_SERVER_ERROR,
    HTTPStatus.BAD_GATEWAY,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
}


class DownloadError(DataError):
    """A file that cannot be fetched or is not the published one."""


def fetch(url: str, path: Path, checksum: str, on_bytes: OnBytes, pause: Callable[[float], None] = time.sleep) -> None:
    """Download ``url`` to ``path`` by way of ``<path>.part``, which a later call resumes.

    ``urllib`` takes proxies from the environment.

    Args:
        checksum: expected checksum of the file, as ``checksum_of`` returns it.
        on_bytes: called as bytes arrive.
        pause: waits the given number of seconds; replaced in tests.

    Raises:
        DownloadError: the server refuses or does not answer, or the contents do not have the ``checksum``.
        ConfigError: the address is not an HTTP one.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise ConfigError(f"{url}: expected an address that starts with http:// or https://.")
    part = path.with_name(f"{path.name}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    resumed = _size(part) > 0
    _complete(url, part, on_bytes, pause)
    kind = checksum.partition(":")[0]
    if resumed and checksum_of(part, kind) != checksum:
        # The bytes that were there before may be the beginning of another file.
        part.unlink()
        _complete(url, part, on_bytes, pause)
    found = checksum_of(part, kind)
    if found != checksum:
        part.unlink()
        raise DownloadError(
            f"{url}: wrong checksum: expected {checksum}, found {found}. The download was removed. Try again; if the "
            "checksum is still wrong, the server does not send the published file."
        )
    part.replace(path)


def _complete(url: str, part: Path, on_bytes: OnBytes, pause: Callable[[float], None]) -> None:
    """Request the missing bytes until the file is complete, or all of ``PAUSES_S`` pass without a new byte."""
    tries, most = 0, _size(part)
    while True:
        try:
            _continue(url, part, on_bytes)
            return
        except urllib.error.HTTPError as error:
            if error.code not in TRANSIENT_STATUS:
                raise DownloadError(_refusal(url, error)) from error
            problem = f"HTTP status {error.code} ({error.reason})"
        except TRANSIENT as error:
            problem = str(getattr(error, "reason", "") or error or type(error).__name__)
        if _size(part) > most:
            tries, most = 0, _size(part)
        if tries == len(PAUSES_S):
            raise DownloadError(
                f"{url}: {problem}, after {tries + 1} tries. {_size(part)} bytes are kept in {part}; run the same "
                "command again to resume. Check the connection and the proxy, or give a mirror."
            )
        pause(PAUSES_S[tries])
        tries += 1


def _continue(url: str, part: Path, on_bytes: OnBytes) -> None:
    """Send one request, for the rest of the file if part of it is here."""
    start = _size(part)
    # Without compression in transit: a byte range of a compressed body would be that of another file.
    headers = {"Accept-Encoding": "identity", "User-Agent": "ray-l4"} | ({"Range": f"bytes={start}-"} if start else {})
    try:
        response = urllib.request.urlopen(
            urllib.request.Request(quote(url, safe=":/%?&="), headers=headers), timeout=TIMEOUT_S
        )
    except urllib.error.HTTPError as error:
        if start and error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            # Either the file is complete, or the published one is now shorter; the checksum tells which.
            error.close()
            return
        raise
    with response:
        start = start if _continues(response, start) else 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length is not None else None
        with part.open("r+b" if start else "wb") as file:
            file.seek(start)
            _copy(response, file, start, total, on_bytes)


def _continues(response: Any, start: int) -> bool:
    """Return whether the response begins at ``start``; a server without range support sends the whole file."""
    content_range = response.headers.get("Content-Range", "")
    return start > 0 and response.status == HTTPStatus.PARTIAL_CONTENT and content_range.startswith(f"bytes {start}-")


def _copy(response: Any, file: IO[bytes], done: int, total: int | None, on_bytes: OnBytes) -> None:
    on_bytes(done, total)
    while block := response.read(BLOCK):
        file.write(block)
        done += len(block)
        on_bytes(done, total)
    if total is not None and done < total:  # urllib treats a closed connection as the end
        raise ConnectionError(f"the connection was closed after {done} of {total} bytes")


def _refusal(url: str, error: urllib.error.HTTPError) -> str:
    gone = error.code in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE)
    advice = (
        "The file is no longer there: get it from elsewhere and put it in the raw folder (docs/DATA.md)."
        if gone
        else "The server or a proxy refuses to send it; a mirror may help."
    )
    return f"{url}: HTTP status {error.code} ({error.reason}). {advice}"


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
