"""Run random inputs through the command line, and print how the commands ended."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from analysis.fuzz.kinds import KINDS
from analysis.fuzz.material import build
from analysis.fuzz.mutations import Instead
from analysis.fuzz.workers import Found, Job, preload, run_job
from ray_l4.report.markdown import table

_SHOWN = 2000
"""Bytes of a file that a description of an input shows."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the inputs; return 1 if any of them ended otherwise than its kind allows."""
    parser = argparse.ArgumentParser(prog="python -m analysis.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=20_000, help="number of inputs, all kinds together")
    parser.add_argument("--seed", type=int, default=0, help="seed from which the inputs follow")
    parser.add_argument(
        "--kind", nargs="+", choices=[*KINDS], default=[*KINDS], help="kinds of inputs; all if not given"
    )
    parser.add_argument("--workers", type=int, default=1, help="worker processes at a time")
    parser.add_argument("--out", type=Path, default=Path("runs/fuzz"), help="folder for the inputs that fail")
    given = parser.parse_args(arguments)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        material = _material(Path(folder))
        preload()  # once: the workers are forked from this process
        shares = sum(KINDS[name].share for name in given.kind)
        counts = {name: max(1, given.inputs * KINDS[name].share // shares) for name in given.kind}
        jobs = [Job(name, count, given.seed) for name, count in counts.items()]
        with ThreadPoolExecutor(given.workers) as pool:
            found = dict(zip(counts, pool.map(lambda job: _told(run_job(job, material), job), jobs), strict=True))
    _print(found, time.monotonic() - begun)
    for name, one in found.items():
        _write(one, given.out / name)
    return 1 if any(one.numbers for one in found.values()) else 0


def _told(found: Found, job: Job) -> Found:
    """Say that a job is done: all of them take a while."""
    print(f"{job.kind}: {found.inputs:,} inputs, {sum(found.numbers.values())} failures", file=sys.stderr, flush=True)
    return found


def _material(folder: Path) -> Path:
    """Build the material in a process of its own: a run leaves threads, and workers are forked from this process."""
    import multiprocessing

    process = multiprocessing.get_context("spawn").Process(target=build, args=(folder,))
    process.start()
    process.join()
    if process.exitcode:
        sys.exit("the material could not be made")
    return folder


def _print(found: dict[str, Found], seconds: float) -> None:
    names = sorted(
        {name for one in found.values() for name in one.codes}, key=lambda name: (not name.isdecimal(), name)
    )
    rows = [[kind, str(one.inputs), *(str(one.codes.get(name, 0)) for name in names)] for kind, one in found.items()]
    total = sum(one.inputs for one in found.values())
    sums = [str(sum(one.codes.get(name, 0) for one in found.values())) for name in names]
    print(
        table(
            ["kind", "inputs", *(f"code {name}" if name.isdecimal() else name for name in names)],
            [*rows, ["all", str(total), *sums]],
        )
    )
    print(f"\n{total:,} inputs in {seconds:.0f} s ({total / seconds:.0f} a second)")
    for kind, one in found.items():
        for defect, count in sorted(one.numbers.items(), key=lambda pair: -pair[1]):
            print(f"{kind}: {count} x {defect}")


def _write(found: Found, folder: Path) -> None:
    """Write the inputs that failed. The same seed and kind draw them again."""
    for number, (defect, shown) in enumerate(found.failures.items()):
        for index, (given, outcome) in enumerate(shown):
            folder.mkdir(parents=True, exist_ok=True)
            files = [
                f"--- {name}\n{content if isinstance(content, Instead) else content[:_SHOWN]!r}"
                for name, content in given.files.items()
            ]
            text = "\n".join([defect, repr(given.arguments), f"base {given.base}", *files, "", outcome.error])
            (folder / f"{number}-{index}.txt").write_text(text, encoding="utf-8", errors="backslashreplace")


if __name__ == "__main__":
    sys.exit(main())
