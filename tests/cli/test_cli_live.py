"""``live``, ``promote`` and ``status`` as commands: learning from HTTP while answering, and what is refused."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from ray_l4.store.run_directory import RunDirectory
from tests.cli.background_command import BackgroundCommand
from tests.cli.cli_fixtures import IN_PROCESS, InThisProcess, refused
from tests.cli.test_cli_serve import address_of
from tests.live import live_fixtures as live

LIMIT = 120.0


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return live.learned(tmp_path / "run")


def overview(address: str) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{address}/v1/overview").raise_for_status().json()
    return found


@pytest.mark.end_to_end
def test_examples_over_http_become_a_stage_while_every_request_is_answered(
    run: RunDirectory, start: Callable[..., BackgroundCommand], command: InThisProcess
) -> None:
    sets = ("live.min_examples=4", "live.max_forgetting=100", "live.settings.training.epochs=1")
    options = [part for text in sets for part in ("--set", text)]
    process = start("live", run.path, "--port", 0, "--cluster", IN_PROCESS, *options)
    address = address_of(process)
    assert overview(address)["stages"][0]["promoted"], "before anything is answered"
    refused(command("live", run.path, "--port", 0), 5, "in use")
    for number in range(5):
        body = {"task": "mini.rest", "context": f"case {number}", "question": "how is it ?", "answer": "well"}
        assert httpx.post(f"{address}/v1/feedback", json=body).raise_for_status().json()["waiting"] >= 1
    asked, deadline = 0, time.monotonic() + LIMIT
    while not has_learned(found := overview(address)):
        assert time.monotonic() < deadline, (overview(address), run.log("learner-output").read_text())
        answer = httpx.post(f"{address}/v1/answers", json={"task": "mini.rest", "context": "case 1"})
        assert answer.status_code == 200 and answer.json()["stage"] in (0, 1)
        asked += 1
        time.sleep(0.05)
    assert asked > 5 and [stage["name"] for stage in found["stages"]] == ["mini.rest", "mini.rest (2)"]
    assert found["tasks"][0]["waiting"] == 0
    shown = command("status", run.path)
    assert "serving: stage" in shown.stdout and "learning: nothing" in shown.stdout
    assert "| mini.rest (2) |" in shown.stdout and "waiting in the inbox: nothing" in shown.stdout
    for stage in (1, 0):
        assert f"stage {stage} (" in command("promote", run.path, "--stage", stage).stdout
        wait_for_stage(address, stage)
    process.send(signal.SIGTERM)
    code, output, errors = process.end()
    assert code == 130 and "Traceback" not in errors
    assert "learning mini.rest from the inbox" in output and "stage 1 (mini.rest (2)) is" in output
    assert process.wait_until_gone() == []


def has_learned(found: dict[str, Any]) -> bool:
    """Whether a second stage has been decided on, and the learner has stopped."""
    stages = found["stages"]
    return len(stages) == 2 and stages[1]["promoted"] is not None and found["learning"] is None


def wait_for_stage(address: str, stage: int) -> None:
    deadline = time.monotonic() + LIMIT
    while httpx.get(f"{address}/healthz").json()["stage"] != stage:
        assert time.monotonic() < deadline, f"stage {stage} is not served"
        time.sleep(0.1)


def test_what_cannot_be_live_is_refused(run: RunDirectory, tmp_path: Path, command: InThisProcess) -> None:
    refused(command("live", run.checkpoint(0, 3, 0), "--port", 0), 5, "not a run directory")
    refused(command("live", tmp_path / "nothing"), 5, "not a run directory")
    refused(command("live", run.path, "--set", "optim.lr=1"), 2, "--set optim.lr=1", "live.* and cluster.*")
    refused(command("live", run.path, "--set", "live.min_examples=0"), 2, "min_examples")
    refused(command("live", run.path, "--set", "live.min=3"), 2, "min")
    refused(command("promote", run.path, "--stage", 1), 5, "stage 1 cannot be served: it has not finished")
    refused(command("status", tmp_path), 5, "not a run directory")


def test_a_method_that_learns_all_at_once_cannot_be_live(tmp_path: Path, command: InThisProcess) -> None:
    joint = live.learned(tmp_path / "joint", method="multi-qa")
    refused(command("live", joint.path, "--port", 0), 2, "multi-qa does not learn one task after another")


def test_an_unfinished_run_has_a_status_too(run: RunDirectory, command: InThisProcess) -> None:
    run.save_state(run.state().model_copy(update={"stages_done": 0}))
    (run.path / "summary.json").unlink()
    shown = command("status", run.path)
    assert shown.returncode == 0, shown.stderr
    assert "serving: nothing yet" in shown.stdout
    assert "learning: stage 0 (mini.rest)" in shown.stdout and "interrupted" in shown.stdout
