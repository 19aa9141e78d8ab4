"""The memory that ``ray-l4 plan`` predicts, beside the memory that training takes, each case in a fresh process.

    python -m analysis.benchmarks.memory --json

The measured value is the largest resident memory of a process that trains a GPT-2 from scratch for a few steps and
takes a checkpoint. A student alone in its process learns from copies of its own payload, one for each teacher.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch

from ray_l4.config.cluster import ClusterConfig
from ray_l4.config.experiment import ExperimentConfig
from ray_l4.exchange.codecs import Codec, Payload, build_codec
from ray_l4.learner.learner import Learner
from ray_l4.learner.models import build_model
from ray_l4.learner.sharding import Alone
from ray_l4.learner.stage_run import StageRun
from ray_l4.methods import Topology, get_method, graph_of, resolved
from ray_l4.methods.copying import changed
from ray_l4.planning.batch_shape import BatchShape, batch_shape
from ray_l4.planning.meta_models import vocabulary_of
from ray_l4.planning.process_baselines import LEARNER_PROCESS
from ray_l4.planning.processes import step_or_checkpoint_bytes
from ray_l4.planning.simulated_step import simulate_step
from ray_l4.workers.process import peak_resident_bytes

_STEPS = 4


@dataclass(frozen=True)
class Case:
    """An experiment to train."""

    model: tuple[int, int, int, int]
    """Layers, width, longest sequence (tokens), vocabulary (entries)."""
    batch: int
    answer: int
    """Tokens of an answer."""
    method: str = "l4"
    peers: int = 1
    """Peers in the process."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """More sections of the experiment."""
    cluster: Mapping[str, Any] = field(default_factory=dict)
    """Sections of the cluster profile."""

    def experiment(self) -> ExperimentConfig:
        layers, width, positions, entries = self.model
        shape = {"layers": layers, "width": width, "heads": 8, "positions": positions, "vocabulary": entries}
        sections = {
            "method": self.method,
            "stream": ["task"],
            "model": {"from_scratch": shape},
            "training": {"batch_size": self.batch, "epochs": 1},
        }
        return resolved(ExperimentConfig.model_validate(sections | dict(self.settings)))

    def profile(self) -> ClusterConfig:
        return ClusterConfig.model_validate(dict(self.cluster))

    def shape(self) -> BatchShape:
        return batch_shape(self.experiment(), self.profile(), answer=self.answer)


_TORCH = {"optim": {"variant": "torch"}}

CASES: Mapping[str, Case] = {
    "small": Case((4, 512, 64, 8000), 4, 16),
    "60M parameters": Case((16, 544, 64, 4000), 2, 16),
    "many positions": Case((8, 512, 128, 8000), 8, 32),
    "V=50k, few positions": Case((8, 512, 64, 50257), 1, 16),
    "V=50k, 50M": Case((6, 576, 128, 50257), 2, 16),
    "topk": Case((8, 512, 128, 8000), 8, 32, cluster={"exchange": {"codec": "topk"}}),
    "factored, V=50k": Case((8, 512, 64, 50257), 2, 16, cluster={"exchange": {"codec": "factored"}}),
    "micro-batches": Case((8, 512, 128, 8000), 8, 32, cluster={"students": {"micro_batch": 2}}),
    "torch's AdamW": Case((12, 512, 64, 4000), 2, 16, settings=_TORCH),
    "lamol": Case((8, 512, 128, 8000), 8, 32, "lamol"),
    "ewc": Case((12, 512, 64, 4000), 4, 16, "ewc"),
    "two peers in one process": Case(
        (8, 512, 128, 8000), 4, 32, peers=2, cluster={"exchange": {"transport": "in_process"}}
    ),
}


def predicted(case: Case) -> int:
    """Return the predicted memory in bytes, from the configuration alone."""
    experiment, profile = case.experiment(), case.profile()
    step = simulate_step(experiment, profile.exchange, vocabulary_of(experiment), case.shape(), range(case.peers))
    return step_or_checkpoint_bytes(step) + LEARNER_PROCESS


def train(case: Case, steps: int = _STEPS) -> None:
    """Train the case's peers for ``steps`` steps, exchange included, and take a checkpoint of each."""
    experiment, profile, shape = case.experiment(), case.profile(), case.shape()
    tokens, method, graph = cast(Any, vocabulary_of(experiment)), get_method(experiment.method), graph_of(experiment)
    codec = build_codec(profile.exchange, experiment)
    own = changed(experiment, regulariser=changed(experiment.regulariser, examples=1))
    ranks = Alone(size=shape.ranks)
    learners = [
        Learner(peer, build_model(own.model, tokens, peer), tokens, own, method, ranks, shape.micro_batch)
        for peer in range(case.peers)
    ]
    in_store = profile.exchange.transport_traits.through_object_store
    for stage in range(2 if method.has_guard else 1):
        table = shape.table(tokens, steps)
        _learn([learner.begin_stage(stage, table) for learner in learners], graph, codec, steps, drop_sent=in_store)


def _learn(runs: Sequence[StageRun], graph: Topology, codec: Codec, steps: int, *, drop_sent: bool) -> None:
    """Learn a stage. ``drop_sent``: payloads are handed over in the store, and their senders do not keep them."""
    for step in range(steps):
        sent = {peer: codec.encode(run.forward(step, publish=bool(graph.edges)), 0) for peer, run in enumerate(runs)}
        for peer, run in enumerate(runs):
            arrived = [sent[t] if t in sent else _copy(sent[peer]) for t in graph.teachers_of(peer)]
            if drop_sent:
                sent.clear()
            run.backward(step, [codec.decode(payload) for payload in arrived])
            del arrived
    for run in runs:
        run.learner.weights()
        run.consolidate()


def _copy(payload: Payload) -> Payload:
    return replace(payload, tensors={name: tensor.clone() for name, tensor in payload.tensors.items()})


def measured(name: str) -> int:
    """Measure the largest resident memory, in bytes, of a fresh process that trains the case (``""``: a tiny one)."""
    command = [sys.executable, "-m", "analysis.benchmarks.memory", "--measure", name]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout)


def compare(names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield one object for each case."""
    for name in names:
        case, expected, found = CASES[name], predicted(CASES[name]), measured(name)
        shape, exchange = case.shape(), case.profile().exchange
        scored = {"qa": shape.answer + 1, "lm": shape.length}
        yield {
            "bench": "memory",
            "case": name,
            "method": case.method,
            "transport": exchange.transport,
            "codec": exchange.codec,
            "peers": case.peers,
            "vocab": vocabulary_of(case.experiment()).size,
            "positions": shape.examples * sum(scored[head] for head in get_method(case.method).heads),
            "peak_rss_bytes": found,
            "predicted_rss_bytes": expected,
            "ratio": round(expected / found, 3),
        }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", help=f"cases to run: {', '.join(CASES)} (default: all)")
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")
    parser.add_argument("--baseline", action="store_true", help="measure a process with a tiny model")
    parser.add_argument("--measure", metavar="CASE", help="train CASE in this process and print its memory in bytes")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.measure is not None or options.baseline:
        train(CASES.get(options.measure or "", Case((1, 32, 32, 300), 2, 4)))
        print(peak_resident_bytes())
        return
    for row in compare(options.cases or list(CASES)):
        sizes = [f"{row[key] / 2**20:.0f}" for key in ("predicted_rss_bytes", "peak_rss_bytes")]
        text = f"{row['case']}: predicted {sizes[0]} MiB, measured {sizes[1]} MiB, ratio {row['ratio']}"
        print(json.dumps(row) if options.json else text, flush=True)


if __name__ == "__main__":
    main()
