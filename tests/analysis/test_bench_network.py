"""Two hosts made of network namespaces, and the exchange measured between them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from analysis.benchmarks import network
from analysis.benchmarks.namespaces import Host, two_hosts, why_not
from ray_l4.errors import ClusterError

NO_NAMESPACES = why_not()
needs_namespaces = pytest.mark.skipif(NO_NAMESPACES is not None, reason=str(NO_NAMESPACES))

MEGABYTES = 4
RECEIVE = f"""
import socket, sys
server = socket.create_server((sys.argv[1], 5001))
print("ready", flush=True)
connection, _ = server.accept()
left = {MEGABYTES} * 2**20
while left:
    left -= len(connection.recv(min(left, 2**20)))
connection.sendall(b"all")
"""
SEND = f"""
import socket, sys, time
connection = socket.create_connection((sys.argv[1], 5001))
began = time.monotonic()
connection.sendall(bytes({MEGABYTES} * 2**20))
connection.recv(3)
print(time.monotonic() - began)
"""


def seconds_to_send(one: Host, other: Host) -> float:
    """Return the seconds until all bytes from one host have arrived at the other."""
    receive, send = ([sys.executable, "-c", code] for code in (RECEIVE, SEND))
    with subprocess.Popen(other.inside([*receive, other.address]), stdout=subprocess.PIPE, text=True) as receiver:
        assert receiver.stdout is not None and receiver.stdout.readline() == "ready\n"
        sent = subprocess.run(one.inside([*send, other.address]), capture_output=True, text=True, check=True)
    return float(sent.stdout)


def alive(pid: int) -> bool:
    """Return whether the process exists and has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def namespaces() -> str:
    return subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout


@needs_namespaces
def test_the_link_has_the_rate_and_counts_what_crosses_it() -> None:
    bits = 8 * MEGABYTES * 2**20
    with two_hosts() as (one, other):
        one.limit(0.1)
        before = one.bytes_sent()
        slow = seconds_to_send(one, other)
        crossed = one.bytes_sent() - before
        one.limit(None)
        fast = seconds_to_send(one, other)
    assert slow > 0.9 * bits / 0.1e9  # a tenth of a Gbit/s; a little may pass at once
    assert fast < slow
    assert MEGABYTES * 2**20 < crossed < 1.2 * MEGABYTES * 2**20


@pytest.mark.slow
@needs_namespaces
def test_nothing_is_left_whatever_happens() -> None:
    with pytest.raises(KeyError), two_hosts() as (one, _):
        stubborn = (
            "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(99)"
        )
        process = subprocess.Popen(one.inside([sys.executable, "-c", stubborn]), stdout=subprocess.PIPE)
        assert process.stdout is not None and process.stdout.readline()
        raise KeyError
    assert process.wait(timeout=5) != 0
    assert not alive(process.pid)
    assert one.namespace not in namespaces()


@needs_namespaces
def test_the_hosts_reach_nothing_else() -> None:
    connect = "import socket, sys; socket.create_connection(('1.1.1.1', 53), timeout=2)"
    with two_hosts() as (one, _):
        tried = subprocess.run(one.inside([sys.executable, "-c", connect]), capture_output=True, text=True, check=False)
    assert "Network is unreachable" in tried.stderr


def test_a_command_that_fails_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = tmp_path / "ip"
    fake.write_text("#!/bin/sh\necho first >&2; echo not permitted >&2; exit 1\n", encoding="utf-8")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(ClusterError, match=r"ip netns add .*: not permitted"), two_hosts():
        pytest.fail("there are no hosts")


@pytest.mark.parametrize("rates", ["fast", "-1", "0", "1,"])
def test_a_rate_that_is_none_is_refused(rates: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert network.main([f"--rates={rates}"]) == 2
    assert "expected Gbit/s such as 1 or 2.5, or unlimited" in capsys.readouterr().err


def test_the_table_says_what_crossed_the_link() -> None:
    record: dict[str, Any] = {"link_gbit": 1.0, "codec": "dense", "precision": "float16", "transport": "object_store"}
    record |= {"bytes_per_student_step": 51_000_000, "link_bytes_per_student_step": 52_300_000, "step_ms_p50": 1499.6}
    record |= {"wait_ms_p50": 700.2, "wait_fraction": 0.467, "ratio_to_in_process": 1.336}
    head, _, first, second = network.shown([record, record | {"link_gbit": None, "precision": "float32"}]).splitlines()
    cells = [cell.strip() for cell in first.strip("|").split("|")]
    assert cells == ["1", "dense float16", "object_store", "51.00", "52.30", "1500", "700", "47%", "1.34"]
    assert second.startswith("| unlimited") and " dense " in second
    assert len(head) == len(first) == len(second)


@needs_namespaces
@pytest.mark.end_to_end
def test_students_on_two_hosts(tmp_path: Path) -> None:
    output = tmp_path / "found.jsonl"
    options = "--transports object_store --codecs dense --vocab 3000 --examples 2 --tokens 16 --layers 1 --width 16"
    arguments = ["--rates", "1", "--output", str(output), "--", *options.split(), "--steps", "4", "--repeats", "1"]
    assert network.main(arguments) == 0
    (record,) = (json.loads(line) for line in output.read_text(encoding="utf-8").splitlines())
    payload = 4 * 2 * 16 * 3000
    assert (record["link_gbit"], record["bytes_per_student_step"]) == (1.0, payload)
    assert payload < record["link_bytes_per_student_step"] < 5 * payload  # each way once, and Ray's own messages
    assert record["wait_fraction"] > 0
    assert f"ray-l4-{os.getpid()}" not in namespaces()
