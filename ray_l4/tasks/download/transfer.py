"""One file over HTTP: resumed after a cut, checked, and given its name only when it is whole."""

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
"""The longest wait for the server's next bytes."""
PAUSES_S = (1.0, 2.0, 4.0, 8.0)
"""Before each new try. They start anew once a try has brought some bytes."""
BLOCK = 1 << 16

Tell = Callable[[int, int | None], None]
"""Told the bytes that are here and how many there will be; None when the server does not say."""

PASSING = (urllib.error.URLError, ConnectionError, TimeoutError, ssl.SSLError, http.client.HTTPException)
"""What another try may mend. A full disk is none of these."""

PASSING_STATUS = {
    HTTPStatus.REQUEST_TIMEOUT,
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.INTERNAL_SERVER_ERROR,
    HTTPStatus.BAD_GATEWAY,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
}


class DownloadError(DataError):
    """A file cannot be fetched, or is not what was published."""


def fetch(url: str, path: Path, checksum: str, tell: Tell, pause: Callable[[float], None] = time.sleep) -> None:
    """Bring ``url`` to ``path``, by way of ``<path>.part``, which a later call continues.

    Proxies are taken from the environment, as ``urllib`` does.

    Raises:
        DownloadError: the server refuses or stays silent, or the contents do not have the ``checksum``.
        ConfigError: the address is not one of HTTP.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise ConfigError(f"{url}: expected an address that begins with http:// or https://.")
    part = path.with_name(f"{path.name}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    resumed = _size(part) > 0
    _complete(url, part, tell, pause)
    kind = checksum.partition(":")[0]
    if resumed and checksum_of(part, kind) != checksum:
        # What was there before may be the beginning of another file.
        part.unlink()
        _complete(url, part, tell, pause)
    found = checksum_of(part, kind)
    if found != checksum:
        part.unlink()
        raise DownloadError(
            f"{url}: the checksum is wrong: expected {checksum}, found {found}. What was downloaded is removed. "
            "Try again; if it stays wrong, the server does not send the published file."
        )
    part.replace(path)


def _complete(url: str, part: Path, tell: Tell, pause: Callable[[float], None]) -> None:
    """Ask for what is missing until it is all here, or ``PAUSES_S`` is used up without a new byte."""
    tries, most = 0, _size(part)
    while True:
        try:
            _continue(url, part, tell)
            return
        except urllib.error.HTTPError as error:
            if error.code not in PASSING_STATUS:
                raise DownloadError(_refusal(url, error)) from error
            problem = f"HTTP status {error.code} ({error.reason})"
        except PASSING as error:
            problem = str(getattr(error, "reason", "") or error or type(error).__name__)
        if _size(part) > most:
            tries, most = 0, _size(part)
        if tries == len(PAUSES_S):
            raise DownloadError(
                f"{url}: {problem}, after {tries + 1} tries. {_size(part)} bytes are kept in {part}; "
                "the same command continues from there. Check the connection and the proxy, or give a mirror."
            )
        pause(PAUSES_S[tries])
        tries += 1


def _continue(url: str, part: Path, tell: Tell) -> None:
    """One request: for the rest of the file where a part of it is here."""
    start = _size(part)
    # Compressed on the way, the bytes of a range would be those of another file.
    headers = {"Accept-Encoding": "identity", "User-Agent": "ray-l4"} | ({"Range": f"bytes={start}-"} if start else {})
    try:
        response = urllib.request.urlopen(
            urllib.request.Request(quote(url, safe=":/%?&="), headers=headers), timeout=TIMEOUT_S
        )
    except urllib.error.HTTPError as error:
        if start and error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            # All of it is here, or the file has become shorter; the checksum tells which.
            error.close()
            return
        raise
    with response:
        start = start if _continues(response, start) else 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length is not None else None
        with part.open("r+b" if start else "wb") as file:
            file.seek(start)
            _copy(response, file, start, total, tell)


def _continues(response: Any, start: int) -> bool:
    """Whether the answer begins at ``start``; a server that knows no ranges sends the whole file."""
    content_range = response.headers.get("Content-Range", "")
    return start > 0 and response.status == HTTPStatus.PARTIAL_CONTENT and content_range.startswith(f"bytes {start}-")


def _copy(response: Any, file: IO[bytes], done: int, total: int | None, tell: Tell) -> None:
    tell(done, total)
    while block := response.read(BLOCK):
        file.write(block)
        done += len(block)
        tell(done, total)
    if total is not None and done < total:  # urllib takes a closed connection for the end
        raise ConnectionError(f"the connection was closed after {done} of {total} bytes")


def _refusal(url: str, error: urllib.error.HTTPError) -> str:
    gone = error.code in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE)
    advice = (
        "The file is not there any more: take it from elsewhere and put it into the raw folder (docs/DATA.md)."
        if gone
        else "The server or a proxy refuses to send it; a mirror may help."
    )
    return f"{url}: HTTP status {error.code} ({error.reason}). {advice}"


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
