"""The distillation term of L4's released code, compared with this project's default on the same batch.

::

    python -m analysis.released_term RUN_DIR [--tokenizer FOLDER] [--examples N]

RUN_DIR is a finished run with two students (``method: l4``). They are measured as they were before and after the last
task, on the first training examples of that task. ``--tokenizer`` names a folder with a larger vocabulary, such as
GPT-2's: it adds two untrained models of that vocabulary on the same examples. Dropout is off.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from transformers import PreTrainedModel

from analysis.command import exit_status
from ray_l4.config.experiment import ExperimentConfig
from ray_l4.config.model import FromScratch, ModelConfig
from ray_l4.errors import ConfigError
from ray_l4.learner.models import build_model, load_folder
from ray_l4.losses.objective import Denominators, ObjectiveSpec, head_objective
from ray_l4.losses.targets import DenseTargets
from ray_l4.methods import resolved
from ray_l4.report.finished_run import FinishedRun
from ray_l4.tasks.registry import load
from ray_l4.text.assembly import assemble
from ray_l4.text.batches import Batch, build_batch
from ray_l4.text.heads import Head
from ray_l4.text.tokenizer import TaskTokenizer

HEADS: tuple[Head, ...] = ("qa", "lm")
METHODS = ("l4", "l4-released")
EXAMPLES = 8
UNTRAINED = FromScratch(layers=2, width=64, heads=4, positions=1024)


@dataclass(frozen=True)
class Pair:
    """Two students at the same point of a run, and the batch that they are measured on."""

    title: str
    students: tuple[PreTrainedModel, PreTrainedModel]
    batch: Batch
    vocabulary: int
    """Number of tokens."""


@dataclass(frozen=True)
class Terms:
    """The two terms of the first student's loss, and the L2 norms of their gradients over all its weights."""

    labels: float
    distillation: float
    """As it enters the loss: averaged, times lambda and T squared."""
    labels_gradient: float
    distillation_gradient: float


def preset(method: str, experiment: ExperimentConfig) -> ExperimentConfig:
    """Return an experiment with the method's own settings on the stream and model of another experiment."""
    return resolved(ExperimentConfig(method=method, stream=experiment.stream, model=experiment.model))


def spec_of(experiment: ExperimentConfig) -> ObjectiveSpec:
    """Return how an experiment combines labels and teachers."""
    chosen = experiment.distillation
    return ObjectiveSpec(chosen.weight, chosen.temperature, chosen.direction, chosen.average)


def measure(pair: Pair, spec: ObjectiveSpec, lm_weight: float) -> Terms:
    """Measure both terms of the first student's loss on the batch; the second student is its teacher.

    Sources: REFERENCE.md#lamol-loss, #word-kd-loss, #l4-released.
    """
    student, peer = pair.students
    logits = _logits(student, pair.batch)
    with torch.no_grad():
        targets = {head: DenseTargets(values.log_softmax(-1)) for head, values in _logits(peer, pair.batch).items()}
    totals = []
    for learned in ("labels", "distillation"):
        total = torch.zeros(())
        for head, positions in pair.batch.heads.items():
            from_labels = learned == "labels"
            loss = head_objective(
                logits[head],
                positions.targets_N,
                positions.weights_N if from_labels else torch.zeros_like(positions.weights_N),
                positions.num_current,
                [] if from_labels else [targets[head]],
                spec,
                Denominators(nll=float(positions.weights_N.sum()), kd=float(positions.num_current)),
            )
            total = total + (1.0 if head == "qa" else lm_weight) * loss.total
        totals.append(total)
    values = [total.item() for total in totals]
    norms = [_gradient_norm(student, total) for total in totals]
    return Terms(values[0], values[1], norms[0], norms[1])


def table(pairs: Sequence[Pair], specs: Mapping[str, ObjectiveSpec], lm_weight: float) -> str:
    """Return a Markdown table: a row for each pair and method, and the ratio of the methods' distillation terms."""
    lines = [
        "| students | V | method | CE | KD term | KD / CE | CE gradient | KD gradient | KD / CE |",
        "| --- | --: | --- | --: | --: | --: | --: | --: | --: |",
    ]
    for pair in pairs:
        found = {name: measure(pair, spec, lm_weight) for name, spec in specs.items()}
        for name, terms in found.items():
            cells = [f"{terms.labels:.3f}", f"{terms.distillation:.2e}"]
            cells += [f"{terms.distillation / terms.labels:.1e}", f"{terms.labels_gradient:.3f}"]
            cells += [f"{terms.distillation_gradient:.2e}"]
            cells += [f"{terms.distillation_gradient / terms.labels_gradient:.1e}"]
            lines.append(f"| {pair.title} | {pair.vocabulary:,} | `{name}` | {' | '.join(cells)} |")
        default, released = (found[name] for name in METHODS)
        lines.append(
            f"| {pair.title} | | ratio | | {default.distillation / released.distillation:,.0f} | | "
            f"| {default.distillation_gradient / released.distillation_gradient:,.0f} | |"
        )
    return "\n".join(lines)


def pairs_of(run: FinishedRun, tokenizer: Path | None, num_examples: int) -> Iterator[Pair]:
    """Yield the students before and after the last task, then untrained ones with the vocabulary of ``tokenizer``.

    Raises ConfigError for a run without two tasks and two students, ModelError for a folder without a tokeniser.
    """
    experiment = run.experiment
    last = len(experiment.stream) - 1
    folders = {
        stage: [
            run.directory.checkpoint(stage, run.directory.result_epoch(stage, experiment.training.epochs), s)
            for s in (0, 1)
        ]
        for stage in (last - 1, last)
    }
    if last < 1 or not folders[last][1].is_dir():
        raise ConfigError(f"{run.path}: expected a run of two tasks or more and two students, such as one of method l4")
    task = experiment.stream[last]
    examples = load(task, "train", experiment.data).slice(0, num_examples)
    for stage, when in ((last - 1, "before"), (last, "after")):
        loaded = [load_folder(folder) for folder in folders[stage]]
        yield _pair(f"{when} {task.name}", [model for model, _ in loaded], loaded[0][1], examples, experiment)
    if tokenizer is not None:
        large = TaskTokenizer.pretrained(tokenizer, [task.name], spare=0)
        models = [build_model(ModelConfig(from_scratch=UNTRAINED), large, seed) for seed in (0, 1)]
        yield _pair("untrained", models, large, examples, experiment)


def _pair(
    title: str,
    models: Sequence[PreTrainedModel],
    tokenizer: TaskTokenizer,
    examples: pa.Table,
    experiment: ExperimentConfig,
) -> Pair:
    tokens, _ = assemble(examples, tokenizer, models[0].config.max_position_embeddings)
    if not tokens.num_rows:
        raise ConfigError("none of the examples fits into the model; take more with --examples")
    weight = experiment.training.answer_token_weight
    batch = build_batch(tokens, np.arange(tokens.num_rows), HEADS, tokenizer, weight)
    first, second = (model.eval() for model in models)
    return Pair(title, (first, second), batch, tokenizer.size)


def _logits(model: PreTrainedModel, batch: Batch) -> dict[str, Tensor]:
    logits_PV = model(input_ids=batch.input_ids_RT, use_cache=False).logits.flatten(0, 1)
    return {head: logits_PV[positions.positions_N] for head, positions in batch.heads.items()}


def _gradient_norm(model: PreTrainedModel, loss: Tensor) -> float:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(loss, parameters, retain_graph=True)
    return float(torch.stack([gradient.norm() for gradient in gradients]).norm())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.released_term", description="Compare the distillation terms of l4 and l4-released."
    )
    parser.add_argument("run_dir", metavar="RUN_DIR", type=Path, help="folder of a finished run with two students")
    parser.add_argument(
        "--tokenizer",
        metavar="FOLDER",
        type=Path,
        help="also measure untrained models of this vocabulary",
    )
    parser.add_argument("--examples", metavar="N", type=int, default=EXAMPLES, help="batch size (default: %(default)s)")
    options = parser.parse_args(arguments)

    def work() -> None:
        run = FinishedRun.open(options.run_dir)
        pairs = list(pairs_of(run, options.tokenizer, options.examples))
        experiment = run.experiment
        weight = experiment.training.lm_weight
        print(f"{pairs[0].batch.num_examples} examples of {experiment.stream[-1].name}, lm head weighted {weight:g}\n")
        print(table(pairs, {name: spec_of(preset(name, experiment)) for name in METHODS}, weight))

    return exit_status(work)


if __name__ == "__main__":
    sys.exit(main())
