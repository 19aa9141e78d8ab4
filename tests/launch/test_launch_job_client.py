"""``launch/job_client.py`` against a job server that answers as Ray's does, or otherwise."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.launch.launch_fixtures import REPOSITORY

CLIENT = REPOSITORY / "launch" / "job_client.py"
TOKEN = "right" * 12
PAGES = {"/api/jobs/": [], "/api/jobs/six": {"driver_exit_code": 6}, "/api/jobs/none": {"driver_exit_code": None}}


class JobServer(BaseHTTPRequestHandler):
    """Answers with one of the pages if the token is right."""

    def do_GET(self) -> None:
        right = self.headers["Authorization"] == f"Bearer {TOKEN}"
        self.send_response(200 if right and self.path in PAGES else 404 if right else 401)
        self.end_headers()
        self.wfile.write(json.dumps(PAGES.get(self.path)).encode())

    def log_message(self, *arguments: object) -> None:
        """Print nothing."""


class Website(JobServer):
    """Answers every request with a page that is not JSON."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>")


@pytest.fixture(params=[JobServer])
def address(request: pytest.FixtureRequest) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), request.param) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def client(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return subprocess.run(
        [sys.executable, str(CLIENT), *arguments],
        env=clean | variables,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_cluster_that_answers_and_takes_the_token_is_fine(address: str, tmp_path: Path) -> None:
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text(f"{TOKEN}\n")
    for variables in (
        {"RAY_AUTH_TOKEN": TOKEN},
        {"RAY_AUTH_TOKEN_PATH": str(tmp_path / ".ray" / "auth_token")},
        {"HOME": str(tmp_path)},
    ):
        found = client("check", address, **variables)
        assert (found.returncode, found.stdout, found.stderr) == (0, "", "")


@pytest.mark.parametrize(("job", "printed"), [("six", "6\n"), ("none", "\n"), ("unknown", "\n")])
def test_the_exit_code_of_a_job_is_printed(address: str, job: str, printed: str) -> None:
    assert client("exit-code", address, job, RAY_AUTH_TOKEN=TOKEN).stdout == printed


@pytest.mark.parametrize("bad", ["wrong", "two words", "\u00e9"])
def test_a_wrong_token_is_refused_with_a_remedy(address: str, bad: str, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(bad, encoding="utf-8")
    refused(client("check", address, RAY_AUTH_TOKEN_PATH=str(tmp_path / "token")), "token", "")


def test_a_token_file_that_is_missing_is_named() -> None:
    refused(client("check", "http://127.0.0.1:1", RAY_AUTH_TOKEN_PATH="/no/such/file"), "/no/such/file")


@pytest.mark.parametrize(
    "where", ["http://127.0.0.1:1", "127.0.0.1:8265", "http://no.such.host.invalid", "x", "http://"]
)
def test_an_address_at_which_nothing_answers_is_refused_with_a_remedy(where: str) -> None:
    refused(client("check", where, RAY_AUTH_TOKEN=TOKEN), where, "RAY_API_SERVER_ADDRESS", "ssh -N -L")


@pytest.mark.parametrize("address", [Website], indirect=True)
def test_another_server_than_a_dashboard_is_refused(address: str) -> None:
    refused(client("check", address, RAY_AUTH_TOKEN=TOKEN), "is not the dashboard of a Ray cluster")


def refused(result: subprocess.CompletedProcess[str], *words: str) -> None:
    assert result.returncode == 6
    assert result.stdout == ""
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert all(word in result.stderr for word in words), result.stderr
