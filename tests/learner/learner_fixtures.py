"""Small models, data, learners and stage runs for the tests of the learner room."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch

from ray_l4.cluster.handles import StudentHandle
from ray_l4.cluster.rpc import LocalRpc
from ray_l4.config.experiment import ExperimentConfig
from ray_l4.learner.learner import Learner
from ray_l4.learner.models import build_model
from ray_l4.learner.peer_model import PeerModel
from ray_l4.learner.predictions import Predictions
from ray_l4.learner.stage_run import StageRun
from ray_l4.methods import Topology, get_method
from ray_l4.run.step_loop import StepFigures, StepRules, train_steps
from ray_l4.seeds import derive
from ray_l4.text.assembly import assemble
from ray_l4.text.replay import PseudoExample, generated_table
from ray_l4.text.tokenizer import TaskTokenizer
from ray_l4.text.tokens import concatenated

WORDS = [f"word{index}" for index in range(30)]


def examples(task: str, count: int, seed: int = 0) -> pa.Table:
    """Make examples whose answers repeat a part of the context."""
    draw = random.Random(f"{task} {seed}")
    rows = []
    for index in range(count):
        context = draw.choices(WORDS, k=draw.randint(3, 12))
        answer = " ".join(context[: draw.randint(1, 3)])
        rows.append(
            {
                "context": " ".join(context),
                "question": f"how does {task} begin ?",
                "answer": answer,
                "references": [answer],
                "task": task,
                "sample_id": f"{task}-{index}",
                "meta": "",
            }
        )
    return pa.Table.from_pylist(rows)


@cache
def tokenizer(tasks: tuple[str, ...] = ("a", "b")) -> TaskTokenizer:
    """Train a byte-level BPE tokeniser on the words above."""
    texts = [text for task in tasks for text in examples(task, 20)["context"].to_pylist()]
    return TaskTokenizer.trained([*texts, "how does a begin ?"], 400, list(tasks), 2)


def experiment(**changes: object) -> ExperimentConfig:
    """Make a tiny experiment; ``changes`` replace whole sections."""
    sections: dict[str, object] = {
        "stream": ["a", "b"],
        "model": {"from_scratch": {"layers": 2, "width": 32, "heads": 2, "positions": 64, "dropout": 0.1}},
        "training": {"epochs": 2, "batch_size": 4},
        "optim": {"variant": "torch", "lr": 1e-3, "eps": 1e-8},
    }
    return ExperimentConfig.model_validate(sections | changes)


def tokens(tok: TaskTokenizer, current: int = 8, replayed: int = 3) -> pa.Table:
    """Make the table of a second stage: examples of ``b``, and pseudo-examples of ``a``."""
    table, dropped = assemble(examples("b", current), tok, 64)
    assert not dropped
    samples = []
    for row in examples("a", replayed, seed=1).to_pylist():
        samples.append(PseudoExample(tok.gen["a"], tuple(tok.encode(row["context"])), tuple(tok.encode(row["answer"]))))
    return concatenated(table, generated_table(samples, ["a"] * len(samples), tok, 1)) if samples else table


def replay_alone(tok: TaskTokenizer, count: int) -> pa.Table:
    """Make a table without current examples."""
    table = tokens(tok, replayed=count)
    return table.filter(pc.not_equal(table["origin"], "real")).combine_chunks()


def peers(config: ExperimentConfig, tok: TaskTokenizer, method: str = "l4", count: int | None = None) -> list[Learner]:
    """Build learners that have not begun a stage."""
    row = get_method(method)
    return [
        Learner(
            peer,
            build_model(
                config.model, tok, derive(config.seed, "init", *([peer] if config.peers.init == "own" else []))
            ),
            tok,
            config,
            row,
        )
        for peer in range(row.graph(count or row.peers).size)
    ]


def begun(
    learners: Iterable[Learner], table: pa.Table, stage: int = 1, memory: pa.Table | None = None
) -> list[StageRun]:
    """Begin a stage on ``table`` with every learner."""
    return [learner.begin_stage(stage, table, memory) for learner in learners]


def attentive(tok: TaskTokenizer) -> Any:
    """Build a model with attention large enough that its predictions depend on the prompt."""
    model = build_model(experiment().model, tok, 5).eval()
    with torch.no_grad():
        for block in model.transformer.h:
            for matrix in (block.attn.c_attn.weight, block.attn.c_proj.weight, block.mlp.c_fc.weight):
                matrix.mul_(10)
    return model


def unlike(learners: Sequence[Learner], scale: float = 3.0) -> Sequence[Learner]:
    """Scale the embeddings so that predictions are far from uniform and, if weights differ, from each other."""
    for learner in learners:
        with torch.no_grad():
            learner.model.get_input_embeddings().weight.mul_(scale)
    return learners


@dataclass(frozen=True)
class Worker:
    """Stands in for a ``Student``: a stage run with the calls of the step loop, without codec and Ray."""

    run: StageRun

    def forward(self, fence: int, step: int, readers: Sequence[int]) -> Predictions | pa.Table:
        predictions = self.run.forward(step, publish=bool(readers))
        if self.run.answered is not None:
            return self.run.answered
        predictions.targets()  # as a codec does, before the weights change
        return predictions

    def predict(
        self, fence: int, step: int, student: int, readers: Sequence[int], at_once: bool, asked: Any = None
    ) -> Predictions:
        predictions = self.run.predict(step, student, asked if isinstance(asked, pa.Table) else None)
        predictions.targets()
        return predictions

    def backward(self, fence: int, step: int, own: Any, *teachers: Predictions) -> dict[str, float]:
        return self.run.backward(step, [predictions.targets() for predictions in teachers])

    def advance(
        self, fence: int, step: int, readers: Sequence[int], own: Any, *teachers: Predictions
    ) -> tuple[dict[str, float], Any]:
        return self.backward(fence, step, own, *teachers), self.forward(fence, step + 1, readers)


def graph(runs: Sequence[StageRun]) -> Topology:
    """Return the topology of these peers' method."""
    row = runs[0].learner.method
    return row.graph(len(runs) - len(row.graph(1).frozen))


def train(runs: Sequence[StageRun], steps: Mapping[int, range], topology: Topology | None = None) -> list[StepFigures]:
    """Run a run's step loop over ``steps`` (peer -> its steps), in the method's topology unless another is given.

    Returns the figures of every step, by peer.
    """
    figures: list[StepFigures] = []
    train_steps(
        [StudentHandle(peer, LocalRpc(), [Worker(run)]) for peer, run in enumerate(runs)],
        topology or graph(runs),
        0,
        steps,
        StepRules(1, 1.0, asks_teachers=runs[0].learner.experiment.distillation.asks_teachers),
        where="test",
        on_step=lambda step, by_peer: figures.append(by_peer),
    )
    return figures


def record_gradients(run: StageRun) -> list[dict[str, torch.Tensor]]:
    """Return a list to which every later step appends the gradients that the optimiser gets."""
    steps: list[dict[str, torch.Tensor]] = []

    def note(optimizer: Any, *arguments: Any) -> None:
        named = run.learner.model.named_parameters()
        steps.append({name: p.grad.clone() for name, p in named if p.grad is not None})

    run.optimizer.register_step_pre_hook(note)
    return steps


def same_weights(one: PeerModel, other: PeerModel) -> bool:
    """Return whether two models' weights are the same, bit for bit."""
    pairs = zip(one.model.state_dict().values(), other.model.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def assert_same_gradients(mine: Mapping[str, torch.Tensor], model: torch.nn.Module, tolerance: float = 1e-5) -> None:
    """Compare every gradient with that in ``model``, relative to its own norm or, if that is small, to the largest."""
    expected = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in model.named_parameters()}
    assert mine.keys() == expected.keys()
    largest = max(float(gradient.norm()) for gradient in expected.values())
    for name, gradient in expected.items():
        allowed = tolerance * max(float(gradient.norm()), 1e-3 * largest)
        assert float((mine[name] - gradient).norm()) <= allowed, name


def cosine(mine: Mapping[str, torch.Tensor], model: torch.nn.Module) -> float:
    """Return the cosine similarity of all gradients, as one vector, with those in ``model``."""
    pairs = [(mine[name].flatten(), p.grad.flatten()) for name, p in model.named_parameters() if p.grad is not None]
    one, other = (torch.cat(side) for side in zip(*pairs, strict=True))
    return float(torch.nn.functional.cosine_similarity(one, other, dim=0))
