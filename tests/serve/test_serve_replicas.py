"""Replicas of Ray Serve: the same answers, every one follows the run, and no request fails while they swap."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from ray_l4.serve.choice import served_checkpoint
from ray_l4.store.promotion import decide
from ray_l4.store.run_directory import RunDirectory
from tests.cli.background_command import BackgroundCommand
from tests.serve.serve_fixtures import TASKS, answered, copy_of, wait_until

pytestmark = pytest.mark.ray

LIMIT = 120.0


@pytest.fixture
def own(run: RunDirectory, tmp_path: Path) -> RunDirectory:
    return copy_of(run, tmp_path / "own")


def promote(run: RunDirectory, stage: int) -> int:
    """Promote a stage; returns the student that is served then."""
    decide(run, stage, promoted=True, by="hand", why="a test")
    return served_checkpoint(run).student


@pytest.fixture
def command(own: RunDirectory) -> Iterator[BackgroundCommand]:
    promote(own, 0)
    process = BackgroundCommand("replicas", "serve", own.path, "--port", 0, "--follow", "--replicas", 2)
    yield process
    for left in process.left():
        with suppress(ProcessLookupError):
            os.kill(left, signal.SIGKILL)


def values_of(address: str) -> dict[tuple[str, ...], float]:
    page = httpx.get(f"{address}/metrics", timeout=LIMIT).text
    samples = [sample for family in text_string_to_metric_families(page) for sample in family.samples]
    return {(sample.name, *sorted(sample.labels.values())): sample.value for sample in samples}


def test_replicas_swap_under_load_without_a_failed_request(own: RunDirectory, command: BackgroundCommand) -> None:
    assert command.process.stdout is not None
    line = command.process.stdout.readline()
    found = re.search(r"with 2 replicas at (http://\S+)", line)
    assert found is not None, (line, command.process.communicate())
    address, task = found[1], TASKS[0]
    students = {stage: promote(own, stage) for stage in (1, 0)}
    expected = {
        stage: {row["context"]: row["prediction"] for row in answered(own, stage, student, task)}
        for stage, student in students.items()
    }
    ended, seen = threading.Event(), Counter[int]()

    def keep_asking() -> None:
        with httpx.Client(timeout=LIMIT) as client:
            while not ended.is_set():
                for context in expected[0]:
                    answer = client.post(f"{address}/v1/answers", json={"task": task, "context": context})
                    assert answer.status_code == 200, answer.text
                    place = answer.json()
                    assert place["answer"] == expected[place["stage"]][context]
                    seen[place["stage"]] += 1

    with ThreadPoolExecutor(4) as clients:
        asking = [clients.submit(keep_asking) for _ in range(4)]
        try:
            wait_until(lambda: seen[0] > 20)
            promote(own, 1)
            wait_until(lambda: values_of(address)["ray_l4_swaps_total",] == 2)
            before = seen[0]
            wait_until(lambda: seen[1] > 40)
        finally:
            ended.set()
        assert [each.exception() for each in asking] == [None] * 4
    assert seen[0] - before <= 4, "what was under way at the last swap"
    values = values_of(address)
    stages = [value for name, value in values.items() if name[0] == "ray_l4_served_stage"]
    assert stages == [1, 1], "one of each replica"
    assert values["ray_l4_requests_total", "/v1/answers", "200", "POST"] == seen.total()
    assert not any(name[:1] == ("ray_l4_requests_total",) and name[1:2] == ("500",) for name in values)

    replicas = [process for process in command.left() if b"ray::ServeReplica" in title(process)]
    assert len(replicas) == 2
    os.kill(replicas[0], signal.SIGKILL)
    codes = Counter(httpx.get(f"{address}/healthz", timeout=LIMIT).status_code for _ in range(30))
    assert codes[200] >= 25, codes
    wait_until(lambda: len([own for own in command.left() if b"ray::ServeReplica" in title(own)]) == 2)

    command.send(signal.SIGTERM)
    code, output, errors = command.end()
    assert code == 130, errors
    assert "stopping" in output
    assert command.wait_until_gone() == []


def title(process: int) -> bytes:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return b""
