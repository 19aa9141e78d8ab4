"""The command that learns beside a service: its output, its end, and what ends it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ray_l4.live import child
from ray_l4.live.child import Child

LIMIT = 30.0
PYTHON = sys.executable


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Child]:
    """Function that starts a child that runs Python code in place of ray-l4."""

    def start(code: str, limit: float = LIMIT) -> Child:
        program = tmp_path / "program.py"
        program.write_text(f"import os, sys, time\npipe = int(os.environ['RAY_L4_SUPERVISED'].split(':')[0])\n{code}")
        python = tmp_path / "python"
        python.write_text(f'#!/bin/sh\nexec {PYTHON} {program} "$@"\n')
        python.chmod(0o755)
        monkeypatch.setattr(child.sys, "executable", str(python))
        return Child(["resume", "x"], tmp_path / "logs" / "output.log", limit)

    return start


def ended(own: Child) -> int:
    deadline = time.monotonic() + LIMIT
    while (code := own.poll()) is None:
        assert time.monotonic() < deadline, "it did not end"
        time.sleep(0.02)
    own.close()
    return code


def test_its_end_and_its_error_are_known(command: Callable[..., Child]) -> None:
    assert ended(command("print('fine')")) == 0
    failed = command("print('error: no such task\\nmore', flush=True); sys.exit(2)")
    assert ended(failed) == 2 and failed.error() == "no such task more"
    silent = command("sys.exit(3)")
    assert ended(silent) == 3 and silent.error() == "no such task more", "the output of all is one file"
    killed = command("os.kill(os.getpid(), 9)")
    assert ended(killed) == 137, "as shells report it"


def test_one_that_is_asked_to_stop_may_do_so_in_order(command: Callable[..., Child], tmp_path: Path) -> None:
    code = "import signal\nsignal.signal(signal.SIGTERM, lambda *_: (print('in order', flush=True), sys.exit(130)))\n"
    own = command(code + "print('ready', flush=True)\ntime.sleep(60)")
    wait_for(tmp_path / "logs" / "output.log", "ready")
    own.stop(LIMIT)
    assert own.poll() == 130
    own.close()
    assert "in order" in (tmp_path / "logs" / "output.log").read_text()
    deaf = command(
        "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('deaf', flush=True)\ntime.sleep(60)"
    )
    wait_for(tmp_path / "logs" / "output.log", "deaf")
    deaf.stop(0.2)
    assert deaf.poll() == 137
    deaf.close()


def wait_for(path: Path, text: str) -> None:
    deadline = time.monotonic() + LIMIT
    while not path.is_file() or text not in path.read_text():
        assert time.monotonic() < deadline, f"{text} is not in the output"
        time.sleep(0.02)


def test_one_that_falls_silent_is_killed_and_one_that_shows_life_is_not(command: Callable[..., Child]) -> None:
    alive = command("for _ in range(15): os.write(pipe, b'.'); time.sleep(0.1)", limit=1.0)
    assert ended(alive) == 0
    assert ended(command("time.sleep(60)", limit=0.3)) == 137


@pytest.mark.processes
def test_it_ends_with_the_service_that_was_killed(tmp_path: Path) -> None:
    """A command asks the system for that as it begins."""
    program, python, service = (tmp_path / name for name in ("program.py", "python", "service.py"))
    program.write_text(
        "import time\nfrom ray_l4.cli import supervision\nsupervision.begin()\n"
        "print('begun', flush=True)\ntime.sleep(60)"
    )
    python.write_text(f"#!/bin/sh\nexec {PYTHON} {program}\n")
    python.chmod(0o755)
    service.write_text(
        "import sys, time\nfrom pathlib import Path\nfrom ray_l4.live.child import Child\n"
        f"sys.executable = {str(python)!r}\nown = Child(['resume'], Path('output.log'), 60.0)\n"
        "print(own.pid, flush=True)\ntime.sleep(60)\n"
    )
    process = subprocess.Popen([PYTHON, str(service)], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    wait_for(tmp_path / "output.log", "begun")
    process.kill()
    process.wait()
    deadline = time.monotonic() + LIMIT
    while Path(f"/proc/{pid}").exists() and "zombie" not in Path(f"/proc/{pid}/status").read_text():
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            raise AssertionError("it outlived the service")
        time.sleep(0.05)
