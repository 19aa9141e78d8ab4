"""``serve`` as a command: what it prints, how it ends, and what it refuses before it loads anything."""

from __future__ import annotations

import json
import re
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from ray_l4.store.run_directory import RunDirectory
from tests.cli.background_command import BackgroundCommand
from tests.cli.cli_fixtures import IN_PROCESS, InThisProcess, refused
from tests.run import run_fixtures as small
from tests.serve.serve_fixtures import copy_of

LIMIT = 60.0


@pytest.fixture(scope="module")
def run(finished: Callable[[str], small.Finished]) -> RunDirectory:
    return finished("l4")[0]


def address_of(process: BackgroundCommand) -> str:
    """The address in the line that says the service is there."""
    assert process.process.stdout is not None
    lines = []
    for line in process.process.stdout:
        found = re.search(r"serving .* at (http://\S+)", line)
        if found is not None:
            return found[1]
        lines.append(line)
    raise AssertionError((lines, process.process.communicate()))


@pytest.mark.end_to_end
def test_a_service_answers_and_a_signal_ends_it_after_the_last_answer(
    run: RunDirectory, start: Callable[..., BackgroundCommand]
) -> None:
    process = start("serve", run.path, "--port", 0, "--follow", "--limit", "queue=7")
    address = address_of(process)
    assert httpx.get(f"{address}/healthz").json()["stage"] == 1
    body = {"model": run.path.name, "prompt": "a", "max_tokens": 90, "temperature": 2.0, "stream": True}
    with httpx.stream("POST", f"{address}/v1/completions", json=body, timeout=LIMIT) as stream:
        lines = stream.iter_lines()
        next(lines)
        process.send(signal.SIGTERM)
        assert [line for line in lines if line][-1] == "data: [DONE]"
    code, output, errors = process.end()
    assert code == 130
    assert "stopping; requests under way are finished first" in output
    assert errors.rstrip().endswith("stopped")
    assert "Traceback" not in errors
    assert process.wait_until_gone() == []


@pytest.fixture
def taken() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


def test_a_port_in_use_is_refused_before_a_model_is_loaded(
    command: InThisProcess, run: RunDirectory, taken: socket.socket
) -> None:
    with taken:
        port = taken.getsockname()[1]
        began = time.monotonic()
        refused(command("serve", run.path, "--port", port), 2, f"--port {port}: cannot be served (Address already in")
        assert time.monotonic() - began < 5


def test_another_address_needs_keys(command: InThisProcess, run: RunDirectory, tmp_path: Path) -> None:
    refused(command("serve", run.path, "--host", "0.0.0.0", "--port", 0), 2, "--host 0.0.0.0", "--api-key-file")
    keys = tmp_path / "keys"
    keys.write_text("k" * 32)
    keys.chmod(0o644)
    refused(command("serve", run.path, "--host", "0.0.0.0", "--api-key-file", keys), 2, "chmod 600")


def test_what_cannot_be_served_is_refused(command: InThisProcess, run: RunDirectory, tmp_path: Path) -> None:
    own = copy_of(run, tmp_path / "own")
    own.save_state(own.state().model_copy(update={"stages_done": 0}))
    port = ("--port", 0)
    refused(command("serve", own.path, *port), 5, "no stage of this run has finished", f"ray-l4 resume {own.path}")
    refused(command("serve", tmp_path / "none", *port), 5, "not a run directory")
    refused(command("serve", run.checkpoint(1, 3, 0), "--follow", *port), 2, "--follow", "does not change")
    refused(command("serve", run.path, "--cluster", IN_PROCESS, "--replicas", 2, *port), 2, "2 replicas need Ray")
    weights = own.checkpoint(1, 3, 1) / "model.safetensors"
    own.save_state(own.state().model_copy(update={"stages_done": 2}))
    weights.write_bytes(weights.read_bytes()[:1000])
    refused(command("serve", own.path, *port), 4, "model.safetensors")
    refused(command("serve", own.path, "--replicas", 2, *port), 4, "model.safetensors is damaged")


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        ("que=3", ("there is no limit 'que'", "Did you mean 'queue'?")),
        ("queue", ("--limit queue", "expected a number")),
        ("queue=many", ("expected a number",)),
        ("queue=0", ("queue", "greater than or equal to 1")),
        ("queue=1.5", ("queue", "integer")),
        ("stop_seconds=1000", ("stop_seconds", "less than or equal to 50")),
    ],
)
def test_a_bad_limit_is_refused(command: InThisProcess, run: RunDirectory, limit: str, words: tuple[str, ...]) -> None:
    refused(command("serve", run.path, "--limit", limit), 2, *words)


def test_without_the_extra_the_message_says_how_to_install_it(
    command: InThisProcess, run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray_l4.serve import opening

    monkeypatch.setattr(opening, "find_spec", lambda name: None if name == "uvicorn" else object())
    refused(command("serve", run.path), 2, "serving needs uvicorn", 'pip install "ray-l4[serve]"')


@pytest.mark.processes
def test_commands_that_do_not_serve_import_nothing_of_it() -> None:
    import subprocess

    program = (
        "import sys, json, ray_l4.cli.main, ray_l4.cli.serving, ray_l4.serve.limits, ray_l4.serve.opening;"
        "print(json.dumps([name for name in ('fastapi', 'uvicorn', 'prometheus_client', 'torch', 'ray')"
        " if name in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
