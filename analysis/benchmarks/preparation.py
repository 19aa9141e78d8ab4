"""The memory and time that it takes to prepare a user's own data, in a fresh process.

::

    python -m analysis.benchmarks.preparation [--examples N] [--model NAME]

Writes a task with N training examples and a hundredth as many test examples as JSONL, and prepares it as ``ray-l4 run``
does: read, checked, tokenised. ``table_bytes`` are those of the results in Arrow, texts and tokens of both splits.
``peak_bytes`` is the largest resident memory while they are made, less what the process had after it had prepared
ten examples, with all libraries loaded: the results themselves are part of it. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from analysis.command import exit_status
from ray_l4.config.experiment import ExperimentConfig
from ray_l4.setup.setup import prepare
from ray_l4.tasks.registry import load
from ray_l4.workers.process import peak_resident_bytes

_WARM_UP = 10
"""Examples that are prepared before the measurement."""
_WORDS = {"context": 20, "question": 8, "answer": 4}
"""Column -> words of a text."""
_FROM_SCRATCH = {"layers": 1, "width": 32, "heads": 2, "positions": 256, "vocabulary": 4000}


def write(folder: Path, examples: int) -> None:
    """Write the files of a task to a new folder: the same words for the same number of examples."""
    folder.mkdir(parents=True)
    generator = random.Random(0)
    letters = "abcdefghijklmnoprstuvwz"
    words = ["".join(generator.choices(letters, k=generator.randint(2, 9))) for _ in range(2000)]
    for split, count in (("train", examples), ("test", max(_WARM_UP, examples // 100))):
        with (folder / f"{split}.jsonl").open("w", encoding="utf-8") as file:
            for _ in range(count):
                row = {column: " ".join(generator.choices(words, k=length)) for column, length in _WORDS.items()}
                file.write(json.dumps(row) + "\n")


def experiment(folder: Path, model: str | None) -> ExperimentConfig:
    """Return an experiment on the task in ``folder``. ``model``: a pretrained one; None for one from scratch."""
    return ExperimentConfig.model_validate(
        {
            "stream": [{"name": "own", "path": str(folder), "metric": "em"}],
            "model": {"from_scratch": _FROM_SCRATCH} if model is None else {"name": model},
        }
    )


def measure(folder: Path, model: str | None) -> dict[str, Any]:
    """Prepare the task in ``folder`` in this process, after a small one beside it, and return the figures."""
    prepare(experiment(folder.with_name("small"), model))
    config = experiment(folder, model)
    before, start = _resident_bytes(), time.process_time()
    setup = prepare(config)
    (fingerprint,) = setup.fingerprints.values()
    seconds, peak = time.process_time() - start, peak_resident_bytes() - before
    texts = sum(load(config.stream[0], split, config.data).nbytes for split in ("train", "test"))
    table = texts + setup.training["own"].nbytes + setup.tests["own"].prompts.nbytes
    return {
        "bench": "preparation",
        "examples": setup.training["own"].num_rows,
        "model": model or "from scratch",
        "table_bytes": table,
        "peak_bytes": peak,
        "ratio": round(peak / table, 2),
        "cpu_seconds": round(seconds, 2),
        "fingerprint": fingerprint,
    }


def _resident_bytes() -> int:
    """Return the resident memory of this process; Linux alone tells it."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024


def measured(examples: int, model: str | None = None) -> dict[str, Any]:
    """Return the figures of a fresh process that prepares ``examples`` examples."""
    with tempfile.TemporaryDirectory() as place:
        write(Path(place) / "small", _WARM_UP)
        write(Path(place) / "own", examples)
        command = [sys.executable, "-m", "analysis.benchmarks.preparation", "--measure", f"{place}/own"]
        command += [] if model is None else ["--model", model]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=100_000, metavar="N", help="training examples (%(default)s)")
    parser.add_argument("--model", metavar="NAME", help="pretrained model (default: a tokeniser trained on the data)")
    parser.add_argument("--measure", type=Path, metavar="FOLDER", help="prepare the task in FOLDER in this process")
    given = parser.parse_args(arguments)

    def work() -> None:
        measuring = given.measure is not None
        print(json.dumps(measure(given.measure, given.model) if measuring else measured(given.examples, given.model)))

    return exit_status(work)


if __name__ == "__main__":
    sys.exit(main())
