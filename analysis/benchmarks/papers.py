"""How long the papers' run would take here: WOZ, CNN/DailyMail, WikiSQL, a model of GPT-2's size, nine epochs.

::

    python -m analysis.benchmarks.papers --device cuda --precision bfloat16 [--model gpt2] [--steps N] [--out FILE]

Measures a step of two students for each task, as ``ray-l4 bench step`` does, and the rate at which one student
generates. An example of a task takes the same time in every stage, so the times of stages follow from the numbers of
their examples. The rate is that of a float32 model and pseudo-examples of 60 tokens on average: a token of a long
article costs more, so replay takes longer than projected. Answers to test sets are not part of it: evaluators give them
while students learn. Prints one JSON object; the rows that it was made from are appended to the ledger.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from analysis.command import exit_status
from ray_l4.bench import generate, step
from ray_l4.bench.generate import GenerateCase
from ray_l4.bench.ledger import append, provenance
from ray_l4.bench.lengths import drawn, real_lengths
from ray_l4.bench.step_sides import SHAPES, StepCase
from ray_l4.text.replay import num_replayed_per_task

STREAM = {"woz.en": 2536, "cnn_dailymail": 6604, "wikisql": 6525}
"""Task -> its training examples, in the papers' order (REFERENCE.md#data-schema)."""
EPOCHS = 9
RATIO = 0.2
"""Replayed examples as a share of the new task's (gamma)."""


class Stage(NamedTuple):
    """What a stage learns."""

    name: str
    examples: Mapping[str, int]
    """Task -> its examples in an epoch, replayed ones included."""


def stages() -> list[Stage]:
    """Return the stages of the stream."""
    found, earlier = [], list[str]()
    for name, count in STREAM.items():
        replayed = num_replayed_per_task(RATIO, count, len(earlier)) if earlier else 0
        found.append(Stage(name, {**dict.fromkeys(earlier, replayed), name: count}))
        earlier.append(name)
    return found


def projected(seconds: Mapping[str, float], tokens: Mapping[str, float], rate: float) -> list[dict[str, Any]]:
    """Return the seconds of every stage.

    Args:
        seconds: task -> seconds that two students take to learn one of its examples once.
        tokens: task -> tokens of an example.
        rate: tokens that a student generates in a second.
    """
    rows = []
    for stage in stages():
        replayed = {task: count for task, count in stage.examples.items() if task != stage.name}
        rows.append(
            {
                "stage": stage.name,
                "training_seconds": EPOCHS * sum(count * seconds[task] for task, count in stage.examples.items()),
                "replay_seconds": sum(count * tokens[task] for task, count in replayed.items()) / rate,
            }
        )
    return rows


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure a step of every task and generation, and return the projection."""
    precision: Literal["float32", "bfloat16"] = arguments.precision
    progress = partial(print, file=sys.stderr)
    rows, tokens = {}, {}
    for task in STREAM:
        lengths, _ = real_lengths([task], SHAPES[arguments.model].vocabulary)
        tokens[task] = sum(own for own, _ in lengths[0]) / len(lengths[0])
        examples = drawn(lengths, arguments.batch * (arguments.steps + step.BEYOND), seed=0)
        case = StepCase(
            arguments.model,
            arguments.batch,
            examples,
            arguments.threads,
            arguments.device,
            precision,
            compile=arguments.compile,
        )
        rows[task] = step.measure(case, arguments.steps, progress) | {"tasks": task}
        append(arguments.ledger, rows[task])
    work = GenerateCase(
        arguments.model, "replay", arguments.examples, arguments.examples, arguments.threads, arguments.device
    )
    generated = generate.measure(work, 1, progress)
    append(arguments.ledger, generated)
    seconds = {task: row["wall_ms"]["p50"] / 1e3 / arguments.batch for task, row in rows.items()}
    parts = projected(seconds, tokens, generated["tokens_per_second"]["p50"])
    return {
        "bench": "papers",
        "model": arguments.model,
        "batch": arguments.batch,
        "device": arguments.device,
        "precision": precision,
        "epochs": EPOCHS,
        "stages": parts,
        "seconds": sum(part["training_seconds"] + part["replay_seconds"] for part in parts),
        "share_of_flops_ceiling": {task: row["share_of_flops_ceiling"] for task, row in rows.items()},
        "wall_speedup_over_textbook": {task: row["wall_speedup_over_textbook"] for task, row in rows.items()},
        **provenance(),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(SHAPES), default="gpt2")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--compile", action="store_true", help="compile the blocks of the students here")
    parser.add_argument("--batch", type=int, default=4, help="examples in a step (the papers' release: 4)")
    parser.add_argument("--steps", type=int, default=10, help="measured steps of each side and task")
    parser.add_argument("--examples", type=int, default=128, help="pseudo-examples that are generated together")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--ledger", type=Path, default=Path("runs/bench.jsonl"))
    parser.add_argument("--out", type=Path, help="file for the result")
    given = parser.parse_args(arguments)
    result = json.dumps(measure(given), indent=1)
    print(result)
    if given.out is not None:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(result + "\n", encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(exit_status(main))
