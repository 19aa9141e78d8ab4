"""The gradient of the objective for every option, compared with a plain implementation that shares no code."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from ray_l4.learner.predictions import Predictions
from ray_l4.learner.stage_run import StageRun
from ray_l4.losses import head_gradient
from ray_l4.losses.chunked import row_chunks
from ray_l4.methods import get_method
from tests.learner import learner_fixtures as small
from tests.learner.plain_objective import Rule, plain_objective

CURRENT, REPLAYED, ALONE = 3, 2, -1


def no_dropout(precision: str = "float32", **more: Any) -> Any:
    shape = {"layers": 1, "width": 32, "heads": 2, "positions": 64, "dropout": 0.0}
    return small.experiment(
        model={"from_scratch": shape, "precision": precision},
        training={"epochs": 2, "batch_size": CURRENT + REPLAYED, "max_grad_norm": 1e9} | more.pop("training", {}),
        peers={"init": "own"},
        **more,
    )


def begun(config: Any, method: str, peers: int, replayed: int, stage: int = 1) -> list[StageRun]:
    """Begin a stage of which every batch holds all examples: current and replayed ones, or only replayed ones."""
    tok = small.tokenizer()
    table = small.replay_alone(tok, REPLAYED) if replayed == ALONE else small.tokens(tok, CURRENT, replayed)
    return small.begun(small.unlike(small.peers(config, tok, method, peers)), table, stage)


def one_step(runs: list[StageRun]) -> list[tuple[dict[str, float], dict[str, torch.Tensor], Any, list[Any], Any]]:
    """Learn the first step; returns for each student figures, gradients, model and teachers before it, and rows."""
    students = small.graph(runs).students
    before = [copy.deepcopy(run.learner.model) for run in runs]
    recorded = {peer: small.record_gradients(runs[peer]) for peer in students}
    (figures,) = small.train(runs, dict.fromkeys(students, range(1)))
    rows = runs[0].tokens.take(runs[0].sampler.indices(0)).to_pylist()
    return [
        (
            figures[peer],
            recorded[peer][0],
            before[peer],
            [before[teacher] for teacher in small.graph(runs).teachers_of(peer)],
            rows,
        )
        for peer in students
    ]


def check(runs: list[StageRun], rule: Rule) -> None:
    """Compare the figures and all gradients of a step with those of the plain implementation."""
    learner = runs[0].learner
    for figures, gradients, model, teachers, rows in one_step(runs):
        loss, expected = plain_objective(model, teachers, rows, learner.tokenizer, rule, learner.method.heads)
        if loss.requires_grad:
            loss.backward()
        for name, value in expected.items():
            assert figures[name] == pytest.approx(value, rel=1e-5, abs=1e-7), name
        small.assert_same_gradients(gradients, model)


@pytest.mark.parametrize(("method", "peers"), [("finetune", 1), ("lamol", 1), ("er", 1), ("l4", 2), ("l4", 3)])
@pytest.mark.parametrize("replayed", [0, REPLAYED, ALONE])
def test_gradient_equals_the_plain_objective(method: str, peers: int, replayed: int) -> None:
    check(begun(no_dropout(), method, peers, replayed), Rule())


OPTIONS: dict[str, dict[str, Any]] = {
    "no distillation": {"weight": 0.0},
    "heavy": {"weight": 3.0, "temperature": 0.5},
    "reverse": {"weight": 3.0, "direction": "reverse"},
    "reverse of three": {"weight": 3.0, "direction": "reverse", "temperature": 1.0},
    "mixture": {"weight": 3.0, "direction": 0.3},
    "mixture of three": {"weight": 3.0, "direction": 0.8, "temperature": 1.0},
    "vocabulary": {"weight": 900.0, "average": "vocabulary", "temperature": 0.5},
    "all examples": {"weight": 3.0, "examples": "all"},
    "separate means": {"means": "separate", "lm_weight": 0.7},
    "everything": {
        "weight": 900.0,
        "direction": "reverse",
        "average": "vocabulary",
        "examples": "all",
        "means": "separate",
        "temperature": 1.5,
    },
}


def config_of(options: dict[str, Any], precision: str = "float32") -> Any:
    training = {name: options[name] for name in ("means", "lm_weight") if name in options}
    distillation = {name: value for name, value in options.items() if name not in training}
    return no_dropout(precision, training=training, distillation=distillation)


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("replayed", [0, REPLAYED, ALONE])
def test_every_option_equals_its_plain_formula(option: str, replayed: int) -> None:
    peers = 3 if "three" in option else 2
    check(begun(config_of(OPTIONS[option]), "l4", peers, replayed), Rule(**OPTIONS[option]))


@pytest.mark.parametrize("option", [name for name in OPTIONS if name != "no distillation"])
def test_every_option_makes_a_difference(option: str) -> None:
    """Otherwise the test above would pass for an option that is ignored on both sides."""
    runs = begun(config_of(OPTIONS[option]), "l4", 3 if "three" in option else 2, REPLAYED)
    figures, _, model, teachers, rows = one_step(runs)[0]
    _, default = plain_objective(model, teachers, rows, runs[0].learner.tokenizer, Rule(), ("qa", "lm"))
    assert figures["loss"] != pytest.approx(default["loss"], rel=1e-3)


@pytest.mark.parametrize(
    ("method", "stage", "replayed", "labels"),
    [
        ("l4-eq12", 0, 0, True),
        ("l4-eq12", 0, REPLAYED, True),
        ("l4-eq12", 1, 0, False),
        ("l4-eq12", 1, REPLAYED, False),
        ("l4-eq12", 1, ALONE, False),
        ("l4-released", 0, 0, True),
        ("l4-released", 1, 0, True),
        ("l4-released", 1, REPLAYED, False),
        ("l4-released", 1, ALONE, False),
        ("l2kd-word", 0, 0, False),
        ("l2kd-word", 1, REPLAYED, False),
        ("lwf", 1, 0, True),
    ],
)
def test_which_current_examples_bear_labels(method: str, stage: int, replayed: int, labels: bool) -> None:
    """Covers ``first_stage``, ``without_replay`` and ``never``; peers differ, so the distillation loss is not 0."""
    runs = begun(no_dropout(), method, get_method(method).peers, replayed, stage)
    check(runs, Rule(labels_on_current=labels))


@pytest.mark.parametrize("option", ["heavy", "everything", "separate means"])
def test_computing_the_loss_in_chunks_changes_nothing(option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = begun(config_of(OPTIONS[option]), "l4", 2, REPLAYED)
    calls: list[int] = []

    def small_chunks(num_rows: int, vocab: int, elements: int, least_rows: int = 3) -> list[slice]:
        calls.append(num_rows)
        return row_chunks(num_rows, vocab, 1, least_rows)

    monkeypatch.setattr(head_gradient, "row_chunks", small_chunks)
    check(runs, Rule(**OPTIONS[option]))
    assert sum(rows > 3 for rows in calls) == 4, "both heads of both students, in several chunks each"


@pytest.mark.parametrize("option", OPTIONS)
def test_the_bfloat16_gradient_is_close_to_the_plain_objective(option: str) -> None:
    rule = Rule(**OPTIONS[option])
    runs = begun(config_of(OPTIONS[option], "bfloat16"), "l4", 3 if "three" in option else 2, REPLAYED)
    figures, gradients, model, teachers, rows = one_step(runs)[0]
    loss, expected = plain_objective(model, teachers, rows, runs[0].learner.tokenizer, rule, ("qa", "lm"))
    loss.backward()
    assert figures["loss"] == pytest.approx(expected["loss"], rel=2e-2)
    assert figures["loss"] != pytest.approx(expected["loss"], rel=1e-6), "was it bfloat16 at all?"
    assert small.cosine(gradients, model) > 0.995


def test_published_predictions_are_those_that_bear_distillation() -> None:
    tok = small.tokenizer()
    for followed in ("current", "all"):
        run = begun(no_dropout(distillation={"examples": followed}), "l4", 2, REPLAYED)[0]
        rows = run.tokens.take(run.sampler.indices(0)).to_pylist()
        bearing = [row for row in rows if row["origin"] == "real" or followed == "all"]
        assert (len(bearing) == len(rows)) == (followed == "all"), "the batch holds both kinds"
        predictions = run.forward(0)
        sent = {head: predictions.log_probs(head) for head in ("qa", "lm")}
        assert sent["qa"].shape == (sum(len(r["ids"]) - r["prompt_length"] + 1 for r in bearing), tok.size)
        assert sent["lm"].shape == (sum(len(r["ids"]) + 1 for r in bearing), tok.size)
        assert torch.allclose(sent["lm"].exp().sum(-1), torch.ones(len(sent["lm"])), atol=1e-5)
        assert not sent["qa"].requires_grad


def test_predictions_without_readers_are_not_sent() -> None:
    tok = small.tokenizer()
    run = small.peers(small.experiment(), tok)[0].begin_stage(1, small.tokens(tok))
    assert run.forward(0, publish=False) == Predictions()
    assert run.backward(0, [])["loss"] > 0
