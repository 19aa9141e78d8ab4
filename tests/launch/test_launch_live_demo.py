"""The demo of a live service: its commands, recorded; what ends it; and once for real, with little to learn."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.launch.test_launch_scripts import MAKES_RUN, REPOSITORY, Project

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")

SERVES = (
    MAKES_RUN
    + """if [[ $1 == live ]]; then
  [[ $FAIL_AT != live ]] || { echo "this is why" >&2; exit 3; }
  trap 'echo stopped >>"$LOG"; kill $!; exit ${STOPPED:-130}' TERM INT
  echo "serving run, stage-0.student-0 at http://127.0.0.1:4321 (Ctrl-C stops it)"
  echo $$ >"$LOG.service"
  sleep 60 &
  wait $!
fi
"""
)
"""A service that says its address and goes on until it is stopped."""
LOADS = """#!/usr/bin/env bash
[[ $1 == -c ]] || echo "$(basename "$0") $*" >>"$LOG"
case $FAIL_AT in
  load) [[ $2 != analysis.live_load ]] || exit 1 ;;
  nothing) ;;
  *) [[ $2 != analysis.live_load ]] || { touch "$LOG.loads"; exec sleep 60; } ;;
esac
"""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    own = Project(tmp_path)
    (own.venv / "bin" / "ray-l4").write_text(SERVES)
    (own.venv / "bin" / "python").write_text(LOADS)
    return own


def ended(project: Project) -> bool:
    """Whether nothing is left: neither the service nor a temporary file."""
    pid = int(Path(f"{project.log}.service").read_text())
    return not Path(f"/proc/{pid}").exists() and list(project.temporary.iterdir()) == []


def test_it_learns_serves_and_loads_the_service_and_stops_it(project: Project) -> None:
    result = project.run("live_demo.sh", "--seed", "3", "--set", "training.epochs=2")
    assert result.returncode == 0, result.stderr
    install, run, live, load, stopped = project.recorded()
    assert install.endswith(f"{project.root}[serve]")
    assert run == (
        "ray-l4 run launch/experiments/live.yaml --set seed=3 --set training.epochs=2 "
        "--cluster laptop --run-dir runs/live-seed3"
    )
    assert live == "ray-l4 live runs/live-seed3 --port 0 --cluster laptop"
    pid = Path(f"{project.log}.service").read_text().strip()
    assert load.startswith(
        f"python -m analysis.live_load http://127.0.0.1:4321 --run runs/live-seed3 --pid {pid} --clients answers "
        "--quiet 5 --corrections mini.sql="
    )
    assert load.endswith("--json runs/live-seed3/live_demo.json")
    assert stopped == "stopped" and ended(project)
    assert "s after installation" in result.stdout
    again = project.run("live_demo.sh", "--seed", "3")
    assert again.returncode == 0 and "runs/live-seed3 exists already and is kept" in again.stdout


@pytest.mark.parametrize("failing", ["load", "run"])
def test_a_failure_is_that_of_the_demo_and_the_service_is_stopped(project: Project, failing: str) -> None:
    if failing == "run":
        (project.venv / "bin" / "ray-l4").write_text("#!/usr/bin/env bash\nexit 4\n")
    result = project.run("live_demo.sh", fail_at=failing)
    assert result.returncode == (4 if failing == "run" else 1)
    if failing == "load":
        assert project.recorded()[-1] == "stopped" and ended(project)
        assert "serving run" in result.stderr and "error: the output of the service is above" in result.stderr


def test_a_service_that_does_not_start_or_does_not_stop_in_order_is_a_failure(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = project.run("live_demo.sh", fail_at="live")
    assert result.returncode == 1
    assert "this is why" in result.stderr and "error: the service did not start" in result.stderr
    monkeypatch.setenv("STOPPED", "1")
    result = project.run("live_demo.sh")
    assert result.returncode == 1 and "the output of the service is above" in result.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_it_stops_everything_when_it_is_stopped(project: Project, number: signal.Signals) -> None:
    with project.start("live_demo.sh", fail_at="never") as process:
        deadline = time.monotonic() + 30
        while not Path(f"{project.log}.loads").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(number)
        assert process.wait(30) == (130 if number == signal.SIGINT else 143)
    assert project.read()[-1] == "stopped" and ended(project)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seed"], "--seed expects a whole number, not ''"),
        (["--cluster"], "--cluster expects the name or the file of a profile"),
        (["--set", "epochs"], "--set expects KEY=VALUE, not 'epochs'"),
        (["--speed", "1"], "unknown option '--speed'"),
    ],
)
def test_it_refuses_invalid_options(project: Project, arguments: list[str], message: str) -> None:
    result = project.run("live_demo.sh", *arguments)
    assert (result.returncode, project.recorded()) == (1, [])
    assert message in result.stderr


@pytest.mark.end_to_end
@pytest.mark.processes
@pytest.mark.timeout(240)
def test_it_runs(tmp_path: Path) -> None:
    """The real commands, in one process, on so little that nothing is learned well."""
    own = Project(tmp_path)
    programs = {"python": "", "ray-l4": "-m ray_l4.cli", "pip": "-m pip"}
    for name, arguments in programs.items():
        text = f'#!/usr/bin/env bash\nPYTHONPATH="{REPOSITORY}" exec "{sys.executable}" {arguments} "$@"\n'
        (own.venv / "bin" / name).write_text(text)
    installed = 'source "$0/launch/lib.sh"; printf "%s\\n" "$(cksum <"$0/pyproject.toml") serve $ROOT" >"$1"'
    stamp = own.venv / ".ray-l4-installed-serve"
    environment = os.environ | {"RAY_L4_VENV": str(own.venv)}
    subprocess.run(["bash", "-c", installed, str(own.root), str(stamp)], env=environment, check=True)
    small = {
        "stream.0.train": 24,
        "stream.0.test": 8,
        "training.epochs": 1,
        "model.from_scratch.layers": 1,
        "model.from_scratch.width": 32,
        "replay.ratio": 0.1,
        "evaluation.max_new_tokens": 4,
        "live.max_forgetting": 100,
    }
    settings = [word for key, value in small.items() for word in ("--set", f"{key}={value}")]
    with own.start("live_demo.sh", "--cluster", "in_process", *settings) as process:
        output, errors = process.communicate(timeout=200)
    assert process.returncode == 0, output + errors
    account = json.loads((own.root / "runs" / "live-seed0" / "live_demo.json").read_text())
    assert account["complaints"] == [] and account["failed"] == 0
    assert list(account["stages"]) == ["mini.sql (2)", "restaurants"]
    assert {task: kept["learned"] == kept["different"] for task, kept in account["kept"].items()} == {
        "mini.sql": True,
        "restaurants": True,
    }
    assert account["latency"]["learning"]["requests"] > 0 and account["latency"]["quiet"]["requests"] > 0
    assert "| failed  " in output and "served from now on" in output
