"""``--supervise``: the command runs in a process of its own, and is started again when Ray ends it or its session dies.

Ray's library ends the process that uses it when the cluster's control store (GCS) is gone, so the supervisor is another
process: it imports neither Ray nor PyTorch, and passes signals and the exit code through. A command says on a pipe that
it is alive, every second, and how it ends. One that ends without a word, says that its session is lost, or falls
silent, goes on in a new session.
"""

from __future__ import annotations

import ctypes
import os
import select
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from ray_l4.cli import interruption
from ray_l4.config.supervised import ALIVE, ENDED, LOST, SUPERVISED

if TYPE_CHECKING:
    from ray_l4.config.cluster import ClusterConfig

_BEAT = 1.0
"""Seconds between two signs of life."""
_MOST_DOUBTS = 3
"""Further beats to wait for once the limit is over: both processes may have been suspended until then."""
_speaking = threading.Lock()

_PR_SET_PDEATHSIG = 1


def begin() -> None:
    """In a supervised command, before anything else: end with the supervisor, even if that is killed; show life."""
    if SUPERVISED in os.environ:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(os.environ[SUPERVISED].split(":")[1]):
            os._exit(1)  # it was killed before the line above
        threading.Thread(target=_beat, name="signs of life", daemon=True).start()


def _beat() -> None:
    while True:
        with _speaking:
            if SUPERVISED not in os.environ:
                return  # the last word has been said
            os.write(int(os.environ[SUPERVISED].split(":")[0]), ALIVE)
        time.sleep(_BEAT)


def say_end(*, session_lost: bool = False) -> None:
    """In a supervised command: say that it ends by itself, or that it needs a new Ray session."""
    with _speaking:
        if SUPERVISED in os.environ:
            pipe = int(os.environ.pop(SUPERVISED).split(":")[0])
            os.write(pipe, LOST if session_lost else ENDED)


def supervise(arguments: Sequence[str], folder: Path, cluster: ClusterConfig) -> int:
    """Run ``ray-l4`` with these arguments, then ``resume`` as often as needed; return the exit code.

    ``folder``: the run directory. ``cluster``: how often to restart, and after which silence. Raises SessionLostError
    if session after session dies without progress.
    """
    from ray_l4.cluster.watchdog import end_processes, pattern_of
    from ray_l4.errors import SessionLostError
    from ray_l4.run.restart_budget import RestartBudget, RestartsSpentError, progress_on_disk
    from ray_l4.store.run_directory import RunDirectory

    budget, child = RestartBudget(cluster.restarts.most, cluster.restarts.backoff), _Child(cluster.timeouts.control)
    while True:
        code, said = child.run([*arguments, "--no-supervise"])
        if said == ENDED or code == interruption.EXIT_CODE:
            return code
        if child.stopped:  # before it could heed the signal, or while it was being ended for another reason
            return _stopped(folder)
        # What is left of the session must be gone: its coordinator could still write. What it writes is whole anyway.
        gone = end_processes(pattern_of(child.pid, []), gently=False)
        if RunDirectory(folder).is_complete():
            return 0  # it died when all was done
        try:
            if not gone:
                raise RestartsSpentError(f"processes of the session of process {child.pid} cannot be ended")
            wait = budget.spend(progress_on_disk(folder))
        except RestartsSpentError as error:
            raise SessionLostError(
                f"the Ray session of the run died, and none was started in its place: {error}. What is on disk is "
                f"kept. To continue: ray-l4 resume {shlex.quote(str(folder))}"
            ) from error
        how = "its Ray session died" if said == LOST else child.silence or f"its process ended with {code}"
        print(f"the run was cut off ({how}); it goes on in a new Ray session in {wait:g} s", flush=True)
        child.wait_unless_stopped(wait)
        if (folder / "config.yaml").is_file() and arguments[0] != "resume":  # with the profile of the start, kept there
            arguments = ["resume", str(folder)]
        if child.stopped:
            return _stopped(folder)


def _stopped(folder: Path) -> int:
    """Say how to continue a run that was stopped between two commands; return the exit code."""
    if (folder / "config.yaml").is_file():
        print(f"stopping; to continue: ray-l4 resume {shlex.quote(str(folder))}", flush=True)
    return interruption.EXIT_CODE


class _Child:
    """The command that runs now, and whether the user has asked it to stop."""

    def __init__(self, limit: float) -> None:
        """``limit``: seconds without a sign of life after which a command is killed."""
        self.stopped = False
        self.pid = 0
        self.silence: str | None = None
        """How the last command hung, if it did."""
        self._limit = limit
        self._process: subprocess.Popen[bytes] | None = None
        for number in interruption.handled():
            signal.signal(number, self._forward)

    def wait_unless_stopped(self, seconds: float) -> None:
        """Wait, but not once the user has asked to stop."""
        deadline = time.monotonic() + seconds
        while not self.stopped and time.monotonic() < deadline:
            time.sleep(_BEAT / 10)

    def run(self, arguments: Sequence[str]) -> tuple[int, bytes]:
        """Run a command to its end; return its exit code as shells report it, and what it said."""
        reading, writing = os.pipe()
        mark = {SUPERVISED: f"{writing}:{os.getpid()}"}
        with os.fdopen(reading, "rb") as said:
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "ray_l4.cli", *arguments],
                    stdin=subprocess.DEVNULL,
                    env=os.environ | mark,
                    pass_fds=[writing],
                    process_group=0,  # a signal to the whole group of this process reaches it once
                )
            finally:
                os.close(writing)
            self.pid = self._process.pid
            if self.stopped:
                self._process.terminate()
            last = self._listen(self._process, said.fileno())
            code = self._process.wait()
            self._process = None
        return (128 - code if code < 0 else code), last

    def _listen(self, process: subprocess.Popen[bytes], pipe: int) -> bytes:
        """Return the last word of a command, once it has ended. One that falls silent is killed."""
        self.silence = None
        last, heard, doubts = b"", time.monotonic(), 0
        while True:
            ended = process.poll() is not None  # before the pipe is read: nothing comes after that
            words = os.read(pipe, 2**16) if select.select([pipe], [], [], 0 if ended else _BEAT)[0] else b""
            if words:
                last, heard, doubts = words[-1:], time.monotonic(), 0
            elif ended:
                return last
            elif time.monotonic() - heard > self._limit and (doubts := doubts + 1) > _MOST_DOUBTS:
                self.silence = f"its process showed no sign of life for {self._limit:g} s (timeouts.control)"
                process.kill()
                process.wait()
            else:
                time.sleep(_BEAT / 10)  # at the end of the pipe, reading does not wait

    def _forward(self, number: int, frame: FrameType | None) -> None:
        self.stopped = True
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)


def wanted(supervised: bool, needs_local_ray: Callable[[], bool]) -> bool:
    """Return whether this process has to become a supervisor: it is asked to, and there is a session to lose."""
    return supervised and SUPERVISED not in os.environ and needs_local_ray()
