"""A web server on this machine that can misbehave on demand."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class FileServer:
    """What is served and how, and what was asked for."""

    files: dict[str, bytes] = field(default_factory=dict)
    """By path, without the first slash."""
    ranges: bool = True
    """Whether parts of a file can be asked for."""
    cuts: list[int] = field(default_factory=list)
    """The next answers break off after so many bytes."""
    statuses: list[int] = field(default_factory=list)
    """The next answers are only these."""
    requests: list[tuple[str, str | None, int]] = field(default_factory=list)
    """Path, asked range and bytes sent of every request."""
    url: str = ""


@contextmanager
def serving() -> Iterator[FileServer]:
    """A server while the block lasts, on a free port of the loopback interface."""
    state = FileServer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path, wanted = self.path.lstrip("/"), self.headers.get("Range")
            if state.statuses or path not in state.files:
                state.requests.append((path, wanted, 0))
                self.send_error(state.statuses.pop(0) if state.statuses else 404)
                return
            content, start = state.files[path], 0
            if wanted and state.ranges:
                start = int(wanted.removeprefix("bytes=").removesuffix("-"))
                if start >= len(content):
                    state.requests.append((path, wanted, 0))
                    self.send_error(416)
                    return
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            else:
                self.send_response(200)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            sent = content[start:][: state.cuts.pop(0) if state.cuts else None]
            state.requests.append((path, wanted, len(sent)))  # before the client can have seen the end
            self.wfile.write(sent)

        def log_message(self, *_: object) -> None:
            """Keep the test's output clean."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
