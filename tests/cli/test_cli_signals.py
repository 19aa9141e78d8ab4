"""What SIGINT and SIGTERM do to a command, in small processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.cli_fixtures import REPOSITORY

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
def test_the_exit_code_is_130(tmp_path: Path, body: str, number: signal.Signals) -> None:
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
    assert "Traceback" not in done.stderr


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
