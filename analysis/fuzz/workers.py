"""Worker processes that run inputs: a hang or the end of a process costs one worker and is laid to its input."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import pickle
import resource
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings

from analysis.fuzz.calls import Outcome, call
from analysis.fuzz.inputs import KINDS, Input

LIMIT = 10.0
"""Seconds that a command may take."""
MEMORY = 12 * 2**30
"""Bytes of address space that a command may use, so that a huge number cannot take the whole machine."""
HANG = "takes longer than the limit"


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
        if outcome.code is not None and outcome.code not in allowed:
            defect = f"exit code {outcome.code} of {given.arguments[0]}: {_last_line(outcome.error)[:60]}"
        if defect:
            self.numbers[defect] = self.numbers.get(defect, 0) + 1
            shown = self.failures.setdefault(defect, [])
            if len(shown) < 3:
                shown.append((given, outcome))

    def merge(self, other: Found) -> None:
        """Add what another worker found."""
        self.inputs += other.inputs
        for mine, theirs in ((self.codes, other.codes), (self.numbers, other.numbers)):
            for name, count in theirs.items():
                mine[name] = mine.get(name, 0) + count
        for defect, shown in other.failures.items():
            self.failures.setdefault(defect, []).extend(shown)


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


def work(job: Job, material: Path, report: Path) -> None:
    """Run a job; write every input before it begins and what was found, for the process that started this one."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    found, kind = Found(), KINDS[job.kind]
    with (report / "stack").open("w") as stack, tempfile.TemporaryDirectory(dir=report) as scratch:

        def use(drawn: Input) -> None:
            (report / "current").write_bytes(pickle.dumps(drawn))
            folder = Path(scratch) / "input"
            folder.mkdir()
            faulthandler.dump_traceback_later(LIMIT, exit=True, file=stack)
            try:
                outcome = call(drawn, folder)
            finally:
                faulthandler.cancel_dump_traceback_later()
            shutil.rmtree(folder, ignore_errors=True)
            found.add(drawn, outcome, kind.codes)
            if found.inputs % 50 == 0:
                _save(found, report)

        each_input(job, material, use)
    _save(found, report)
    (report / "current").unlink(missing_ok=True)


def _save(found: Found, report: Path) -> None:
    (report / "found.part").write_bytes(pickle.dumps(found))
    (report / "found.part").replace(report / "found")


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
        with tempfile.TemporaryDirectory() as name:
            report = Path(name)
            rest = Job(job.kind, job.count - total.inputs, job.seed + 1_000_003 * attempt)
            process = multiprocessing.get_context("fork").Process(target=work, args=(rest, material, report))
            process.start()
            process.join()
            before = total.inputs
            if (report / "found").is_file():
                total.merge(pickle.loads((report / "found").read_bytes()))
            if (report / "current").is_file():
                given: Input = pickle.loads((report / "current").read_bytes())
                stack = (report / "stack").read_text(encoding="utf-8")
                defect = HANG if stack else f"ended the process with {process.exitcode}"
                total.add(given, Outcome(None, stack, defect), KINDS[job.kind].codes)
            if total.inputs == before or not process.exitcode:
                break  # hypothesis has no further inputs of this kind
            attempt += 1
    return total
