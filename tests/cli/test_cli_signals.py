"""What SIGINT and SIGTERM do to a command, in small processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.cli_fixtures import IN_PROCESS, QUICKSTART, REPOSITORY

COMMAND = """
import os, signal, sys, time
from ray_l4.cli import interruption
stop = lambda: os.kill(os.getpid(), {number})
with interruption.heeded():
    print("began", flush=True)
    {body}
print("after")
"""
BODIES = {
    "at work": "stop(); time.sleep(60)",
    "an error that follows from it": """
    try:
        stop()
    except KeyboardInterrupt:
        raise ImportError("half imported") from None""",
    "another exit code": """
    try:
        stop()
    except KeyboardInterrupt:
        sys.exit(7)""",
    "lost, and the work goes on": """
    try:
        stop()
    except KeyboardInterrupt:
        print("finished")""",
    "during an import": "import stops; time.sleep(60)",
    "during an import that loses it": "import loses; time.sleep(60)",
    "a thread that never ends": """
    import threading
    threading.Thread(target=time.sleep, args=[60]).start()
    stop()""",
    "a second one while the first is served": """
    try:
        stop()
    finally:
        stop()
        time.sleep(60)""",
}
"""What a command does when it gets the signal."""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
@pytest.mark.parametrize("body", BODIES)
def test_the_exit_code_is_130_and_one_line_says_so(tmp_path: Path, body: str, number: signal.Signals) -> None:
    (tmp_path / "stops.py").write_text(f"import os, time; os.kill(os.getpid(), {int(number)}); time.sleep(60)")
    (tmp_path / "loses.py").write_text("try:\n    import stops\nexcept BaseException:\n    pass\n")
    done = subprocess.run(
        [sys.executable, "-c", COMMAND.format(number=int(number), body=BODIES[body])],
        env=os.environ | {"PYTHONPATH": f"{REPOSITORY}:{tmp_path}"},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 130, done.stderr
    assert done.stdout.startswith("began\n") and "after" not in done.stdout
    assert done.stderr == "stopped\n", "one line, and no traceback"


DELAYS = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8, 1.5, 3.0)
"""Seconds after the command began to handle signals; by the last one it has loaded its libraries."""


@pytest.mark.end_to_end
@pytest.mark.parametrize(("delay", "module"), [*((delay, "ray_l4.cli") for delay in DELAYS), (0.1, "ray_l4.cli.main")])
def test_a_run_that_gets_a_signal_in_its_first_seconds_ends_with_130_and_one_line(
    tmp_path: Path, delay: float, module: str
) -> None:
    """Before Python itself is up, a signal ends the process as it ends any other; that cannot be helped."""
    numbers = (signal.SIGTERM, signal.SIGINT)
    command = [sys.executable, "-m", module, "run", str(QUICKSTART), "--cluster", str(IN_PROCESS), "--run-dir"]
    started = [
        subprocess.Popen([*command, str(tmp_path / number.name)], stderr=subprocess.PIPE, text=True)
        for number in numbers
    ]
    for process in started:
        while not _handles(process.pid, signal.SIGTERM):
            assert process.poll() is None
            time.sleep(0.001)
    time.sleep(delay)
    for process, number in zip(started, numbers, strict=True):
        process.send_signal(number)
    for process in started:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 130, errors
        assert errors == "stopped\n", "one line, and no traceback"


def _handles(process: int, number: signal.Signals) -> bool:
    (mask,) = [line.split()[1] for line in Path(f"/proc/{process}/status").read_text().splitlines() if "SigCgt" in line]
    return bool(int(mask, 16) >> (number - 1) & 1)


def test_without_a_signal_nothing_changes() -> None:
    for body, code in (("pass", 0), ("sys.exit(5)", 5), ("raise ValueError", 1)):
        done = subprocess.run(
            [sys.executable, "-c", COMMAND.format(number=2, body=body)],
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert done.returncode == code
        assert ("after" in done.stdout) == (code == 0)
