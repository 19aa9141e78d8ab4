"""The bytes that every codec sends in a step, and how far the gradient learned from them is from the exact one.

::

    python -m analysis.benchmarks.codecs [--json] [--data FOLDER] [--model NAME] [--positions K] [--temperature T]

Peers learn real data together for a while. On batches that they have not seen, the first peer then computes two
gradients, of its full objective (labels, and distillation from all others) and of the distillation term alone, from
targets that went through each codec and from exact ones (dense, float32). The forward pass, with its dropout, is the
same each time. Everything runs in this process, so times and waiting, which depend on the link, are null here.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

from analysis.benchmarks.gradients import Comparison, compare, exact, unclipped
from analysis.benchmarks.peers import Trained, trained
from analysis.command import exit_status
from ray_l4.config.cluster import ExchangeConfig
from ray_l4.config.document import Document
from ray_l4.config.experiment import ExperimentConfig
from ray_l4.config.loading import experiment_of
from ray_l4.config.paths import DATA_VARIABLE
from ray_l4.errors import ConfigError
from ray_l4.exchange.codecs import build_codec
from ray_l4.report.markdown import table
from ray_l4.text.tokenizer import TaskTokenizer
from ray_l4.workers.process import peak_resident_bytes

SETTINGS: Mapping[str, Mapping[str, object]] = {
    "float32": {"codec": "dense"},
    "float16": {"codec": "dense", "precision": "float16"},
    "": {"codec": "factored"},
    **{f"k = {k}": {"codec": "topk", "top_k": k} for k in (8, 64, 256)},
    **{f"n = {n}": {"codec": "sampled", "samples": n} for n in (10, 50, 200)},
    "float32 sum": {"codec": "mean"},
}
"""Name of a setting -> values of ``exchange``. ``auto`` would send the smaller of ``dense`` and ``factored``."""

TASKS = ("woz.en", "e2enlg", "rnnlg.rest", "rnnlg.hotel")
FROM_SCRATCH: Mapping[str, object] = {
    "model": {"from_scratch": {"layers": 2, "width": 64, "heads": 4, "positions": 256, "dropout": 0.1}},
    "optim": {"variant": "torch", "lr": 3e-3, "eps": 1e-8, "warmup": 0.1},
    "peers": {"init": "own"},
}
"""Without a pretrained model: a narrow GPT-2 with random weights, and GPT-2's own tokeniser and vocabulary."""

COLUMNS: Mapping[str, str] = {
    "bytes_per_student_step": "bytes a step",
    "gradient_relative_error": "error",
    "gradient_cosine": "cosine",
    "kd_gradient_relative_error": "KD error",
    "kd_gradient_relative_error_std": "±",
    "kd_gradient_cosine": "KD cosine",
    "kd_gradient_relative_error_of_mean": "KD error of mean",
    "kd_loss_ratio": "KD loss / exact",
}
"""Key -> heading of the table."""


def rows(peers: Trained, num_seeds: int) -> Iterator[dict[str, Any]]:
    """Yield one JSON object for each setting. ``num_seeds``: how often a codec that samples is measured."""
    student, *others = [unclipped(learner) for learner in peers.learners]
    experiment = student.experiment
    exchanges = {name: ExchangeConfig.model_validate(values) for name, values in SETTINGS.items()}
    codecs = {name: build_codec(exchange, experiment) for name, exchange in exchanges.items()}
    seeds = {name: range(num_seeds if own.codec_traits.random else 1) for name, own in exchanges.items()}
    found: dict[str, list[Comparison]] = {name: [] for name in SETTINGS}
    positions, vocab = [], 0
    for batch in peers.batches:
        reference = exact([student, *others], batch)
        logits = reference.predictions[0].logits.values()
        positions.append(sum(map(len, logits)))
        vocab = next(iter(logits)).shape[-1]
        for name, codec in codecs.items():
            found[name].append(compare(codec, student, batch, reference, seeds[name]))
    for name, comparisons in found.items():
        yield {
            "bench": "codecs",
            "transport": None,
            "codec": SETTINGS[name]["codec"],
            "setting": name,
            "peers": len(peers.learners),
            "vocab": vocab,
            "positions": fmean(positions),
            "temperature": experiment.distillation.temperature,
            "batches": len(peers.batches),
            "seeds": len(seeds[name]),
            **figures(comparisons),
            "step_ms_p50": None,
            "wait_fraction": None,
            "ratio_to_in_process": None,
            "peak_rss_bytes": peak_resident_bytes(),
        }


def figures(comparisons: Sequence[Comparison]) -> dict[str, float]:
    """Return means of one codec's comparisons over batches and seeds, and spreads (``_std``) of the relative errors."""
    full = [own for comparison in comparisons for own in comparison.full]
    kd = [own for comparison in comparisons for own in comparison.kd]
    return {
        "bytes_per_student_step": fmean(own.num_bytes for own in comparisons),
        "gradient_relative_error": fmean(own.relative_error for own in full),
        "gradient_relative_error_std": pstdev(own.relative_error for own in full),
        "gradient_cosine": fmean(own.cosine for own in full),
        "kd_gradient_relative_error": fmean(own.relative_error for own in kd),
        "kd_gradient_relative_error_std": pstdev(own.relative_error for own in kd),
        "kd_gradient_cosine": fmean(own.cosine for own in kd),
        "kd_gradient_relative_error_of_mean": fmean(own.kd_of_mean.relative_error for own in comparisons),
        "kd_loss_ratio": fmean(ratio for own in comparisons for ratio in own.kd_loss_ratio),
    }


def markdown(found: Sequence[Mapping[str, Any]]) -> str:
    """Render the rows as a table, with their common settings below."""
    first = found[0]
    lines = [
        [f"{row['codec']} {row['setting']}".strip(), *(_figure(key, row[key]) for key in COLUMNS)] for row in found
    ]
    return (
        f"{table(['codec', *COLUMNS.values()], lines)}\n\n{first['peers']} peers, {first['positions']:.0f} positions, "
        f"{first['vocab']} tokens, temperature {first['temperature']:g}; {first['batches']} batches."
    )


def _figure(key: str, value: float) -> str:
    return f"{value:,.0f}" if key == "bytes_per_student_step" else f"{value:.3g}" if "error" in key else f"{value:.5f}"


def _experiment(options: argparse.Namespace) -> ExperimentConfig:
    if options.peers < 2:
        raise ConfigError(f"--peers {options.peers}: whoever is alone learns from nobody; expected 2 or more")
    own: Mapping[str, object] = FROM_SCRATCH if options.model is None else {"model": {"name": options.model}}
    tree = {
        "method": "l4",
        "seed": options.seed,
        "stream": [{"name": name, "train": options.examples} for name in options.tasks],
        "data": {"raw": str(options.data / "raw")} if options.data is not None else {},
        "distillation": {"temperature": options.temperature},
        **own,
    }
    return experiment_of(Document("command line", Path.cwd(), tree))


def _tokenizer(options: argparse.Namespace, experiment: ExperimentConfig) -> TaskTokenizer:
    """Load the model's tokeniser, or GPT-2's. Raises ConfigError if neither can be located."""
    if options.model is None and options.data is None:
        raise ConfigError(
            f"give --model NAME, or the folder that holds tokenizer/gpt2 and raw/: --data FOLDER, or {DATA_VARIABLE}"
        )
    source = options.model or options.data / "tokenizer" / "gpt2"
    return TaskTokenizer.pretrained(source, options.tasks, experiment.model.spare_task_tokens)


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.benchmarks.codecs", description="Bytes and gradient errors of all codecs."
    )
    data = os.environ.get(DATA_VARIABLE)
    parser.add_argument("--json", action="store_true", help="print one JSON object per line instead of a table")
    parser.add_argument(
        "--model", metavar="NAME", help="pretrained model, by name or folder (default: a small one from scratch)"
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="FOLDER",
        default=Path(data) if data else None,
        help="folder that holds raw/ and tokenizer/",
    )
    parser.add_argument(
        "--tasks", nargs="+", default=TASKS, metavar="TASK", help="tasks to learn (default: %(default)s)"
    )
    numbers = {
        "peers": (2, "peers, each of which learns from all others"),
        "positions": (128, "approximate number of distilled positions in a step"),
        "examples": (300, "examples of each task"),
        "steps": (300, "training steps before the measurement"),
        "batches": (6, "batches to measure on"),
        "seeds": (8, "repetitions on each batch of a codec that samples"),
    }
    for name, (default, meaning) in numbers.items():
        parser.add_argument(f"--{name}", type=_count, default=default, metavar="N", help=f"{meaning} (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of models and data (%(default)s)")
    parser.add_argument(
        "--temperature", type=float, default=2.0, metavar="T", help="temperature of the divergence (%(default)s)"
    )
    return parser


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value}: expected 1 or more")
    return value


def run(options: argparse.Namespace) -> None:
    """Train, measure and print. Raises RayL4Error for a mistake of the user's."""
    experiment = _experiment(options)
    peers = trained(
        experiment,
        _tokenizer(options, experiment),
        peers=options.peers,
        steps=options.steps,
        positions=options.positions,
        batches=options.batches,
    )
    found = rows(peers, options.seeds)
    if options.json:
        for row in found:
            print(json.dumps(row), flush=True)
    else:
        print(markdown(list(found)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    options = _arguments().parse_args(arguments)
    return exit_status(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
