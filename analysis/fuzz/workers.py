"""Worker processes that run inputs: a hang or the end of a process costs one worker and is laid to its input."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import resource
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings

from analysis.fuzz.calls import Outcome, call
from analysis.fuzz.inputs import Input
from analysis.fuzz.kinds import KINDS

LIMIT = 10.0
"""Seconds that a command may take. One that takes longer is slow."""
PATIENCE = 60.0
"""Seconds after which a command that has not ended counts as one that hangs."""
MEMORY = 12 * 2**30
"""Bytes of address space that a command may use, so that a huge number cannot take the whole machine."""
HANG = "does not end"
SLOW = "takes longer than the limit"
_forking = threading.Lock()


@dataclass(frozen=True)
class Job:
    """Inputs of one kind, drawn from one seed."""

    kind: str
    count: int
    seed: int


@dataclass
class Found:
    """What came of the inputs of a kind."""

    inputs: int = 0
    codes: dict[str, int] = field(default_factory=dict)
    """Exit code, or how the command failed -> number of inputs."""
    failures: dict[str, list[tuple[Input, Outcome]]] = field(default_factory=dict)
    """Defect -> inputs that show it, the first of them only."""
    numbers: dict[str, int] = field(default_factory=dict)
    """Defect -> number of inputs that show it."""

    def add(self, given: Input, outcome: Outcome, allowed: frozenset[int]) -> None:
        """Count an input."""
        self.inputs += 1
        name = "hang" if outcome.defect == HANG else "traceback" if outcome.code is None else str(outcome.code)
        self.codes[name] = self.codes.get(name, 0) + 1
        defect = outcome.defect
        if defect == SLOW:
            self.codes["slow"] = self.codes.get("slow", 0) + 1
        if outcome.code is not None and outcome.code not in allowed:
            defect = f"exit code {outcome.code} of {given.arguments[0]}: {_last_line(outcome.error)[:60]}"
        if defect:
            self.numbers[defect] = self.numbers.get(defect, 0) + 1
            shown = self.failures.setdefault(defect, [])
            if len(shown) < 3:
                shown.append((given, outcome))


def _last_line(text: str) -> str:
    return text.strip().splitlines()[-1] if text.strip() else ""


def each_input(job: Job, material: Path, use: Callable[[Input], None]) -> None:
    """Call ``use`` with the inputs of a job, which follow from its seed."""

    @seed(job.seed)
    @settings(
        max_examples=job.count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(KINDS[job.kind].inputs(material))
    def example(drawn: Input) -> None:
        use(drawn)

    example()


def work(job: Job, material: Path, stack: Path, results: Connection) -> None:
    """Run a job; send every input before it begins, and how it ended. A hang leaves its traceback in ``stack``."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    with stack.open("w") as traces, tempfile.TemporaryDirectory(dir=stack.parent) as scratch:

        def use(drawn: Input) -> None:
            results.send(drawn)
            folder = Path(scratch) / "input"
            folder.mkdir()
            began = time.monotonic()
            faulthandler.dump_traceback_later(PATIENCE, exit=True, file=traces)
            try:
                outcome = call(drawn, folder)
            finally:
                faulthandler.cancel_dump_traceback_later()
            if time.monotonic() - began > LIMIT and not outcome.defect:
                outcome = replace(outcome, defect=SLOW)
            shutil.rmtree(folder, ignore_errors=True)
            results.send(outcome)

        each_input(job, material, use)


def preload() -> None:
    """Import what the commands import, so that no input is charged with it; nothing is looked for on the hub."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch

    from ray_l4.cli import main  # noqa: F401
    from ray_l4.learner import inspection  # noqa: F401
    from ray_l4.planning import plan  # noqa: F401
    from ray_l4.report.figures import style  # noqa: F401
    from ray_l4.report.html import page  # noqa: F401
    from ray_l4.run import execute, rescoring  # noqa: F401
    from ray_l4.setup import loaded  # noqa: F401
    from ray_l4.sweep import trials  # noqa: F401

    torch.set_num_threads(1)


def run_job(job: Job, material: Path) -> Found:
    """Run a job in worker processes: another one goes on, with another seed, where an input ended the last."""
    total, attempt = Found(), 0
    while total.inputs < job.count:
        before = total.inputs
        rest = Job(job.kind, job.count - before, job.seed + 1_000_003 * attempt)
        ended_early = _run_worker(rest, material, total)
        if total.inputs == before or not ended_early:
            break  # hypothesis has no further inputs of this kind
        attempt += 1
    return total


def _run_worker(job: Job, material: Path, found: Found) -> bool:
    """Run a job in one process until it ends; return whether an input ended it."""
    context, codes = multiprocessing.get_context("fork"), KINDS[job.kind].codes
    with tempfile.TemporaryDirectory() as name:
        stack = Path(name) / "stack"
        with _forking:  # another worker, forked in between, would hold this one's end of the pipe open
            results, sending = context.Pipe(duplex=False)
            process = context.Process(target=work, args=(job, material, stack, sending))
            process.start()
            sending.close()
        given: Input | None = None
        with results, suppress(EOFError):
            while True:
                given = results.recv()
                found.add(given, results.recv(), codes)
                given = None
        process.join()
        if given is not None:
            trace = stack.read_text(encoding="utf-8")
            defect = HANG if trace else f"ended the process with {process.exitcode}"
            found.add(given, Outcome(None, trace, defect), codes)
        return bool(process.exitcode)
