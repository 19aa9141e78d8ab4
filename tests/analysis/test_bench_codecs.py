"""The benchmark of codecs, on generated data and small models: what it measures, and what it refuses."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from analysis.benchmarks import codecs
from analysis.benchmarks.codecs import SETTINGS, main, rows
from analysis.benchmarks.gradients import difference, learned, received, unclipped
from analysis.benchmarks.peers import Trained, trained
from ray_l4.config.cluster import ExchangeConfig
from ray_l4.config.experiment import ExperimentConfig
from ray_l4.errors import ConfigError
from ray_l4.exchange.codecs import Payload, build_codec
from ray_l4.tasks.registry import load
from ray_l4.text.base_tokenizer import train_base
from ray_l4.text.tokenizer import TaskTokenizer

TASKS = ("mini.woz", "mini.rest")
REQUIRED = (
    *("bench", "transport", "codec", "peers", "vocab", "positions", "bytes_per_student_step", "step_ms_p50"),
    *("wait_fraction", "ratio_to_in_process", "peak_rss_bytes", "gradient_relative_error", "gradient_cosine"),
)
"""Keys that every benchmark of the exchange prints."""


def experiment() -> ExperimentConfig:
    return ExperimentConfig.model_validate(
        {
            "method": "l4",
            "stream": [{"name": name, "train": 40} for name in TASKS],
            "model": {"from_scratch": {"layers": 1, "width": 16, "heads": 2, "positions": 128}},
            "optim": {"variant": "torch", "lr": 1e-2, "eps": 1e-8, "warmup": 0.1},
            "peers": {"init": "own"},
        }
    )


def texts() -> list[str]:
    tables = [load(task, "train", experiment().data) for task in experiment().stream]
    return [text for table in tables for name in ("context", "answer") for text in table[name].to_pylist()]


@pytest.fixture(scope="module")
def peers() -> Trained:
    tokenizer = TaskTokenizer.trained(texts(), 400, TASKS, 2)
    return trained(experiment(), tokenizer, peers=3, steps=30, positions=120, batches=2)


@pytest.fixture(scope="module")
def measured(peers: Trained) -> dict[str, dict[str, Any]]:
    return {row["setting"] or row["codec"]: row for row in rows(peers, 4)}


def test_peers_have_learned_and_are_measured_on_what_they_have_not(peers: Trained) -> None:
    seen = set(peers.learned["sample_id"].to_pylist())
    assert len(seen) + sum(batch.num_rows for batch in peers.batches) == 80, "all examples, each of them once"
    for batch in peers.batches:
        assert seen.isdisjoint(batch["sample_id"].to_pylist())
        assert batch.num_rows == peers.batches[0].num_rows
    assert len(peers.batches) == 2 and len(peers.learners) == 3
    student = peers.learners[0]
    run = student.begin_stage(0, peers.batches[0])
    run.forward(0, publish=False)
    figures = run.backward(0, [])
    assert figures["nll_lm"] < 0.8 * math.log(student.tokenizer.size), "far better than by chance"


def test_every_setting_has_a_line_with_the_keys_of_all_benchmarks(measured: dict[str, dict[str, Any]]) -> None:
    assert {row["codec"] for row in measured.values()} == {values["codec"] for values in SETTINGS.values()}
    for row in measured.values():
        assert set(REQUIRED) <= set(row)
        assert (row["bench"], row["transport"], row["step_ms_p50"], row["wait_fraction"]) == (
            "codecs",
            None,
            None,
            None,
        )
        assert row["peers"] == 3 and row["peak_rss_bytes"] > 1e8
        assert json.loads(json.dumps(row)) == row


def test_lossless_codecs_have_no_error(measured: dict[str, dict[str, Any]]) -> None:
    exact = measured["float32"]
    assert exact["gradient_relative_error"] == exact["kd_gradient_relative_error"] == 0.0
    assert exact["gradient_cosine"] == pytest.approx(1, abs=1e-12)
    assert exact["kd_loss_ratio"] == 1.0
    for name in ("factored", "float32 sum"):
        assert 0 <= measured[name]["kd_gradient_relative_error"] < 1e-3
        assert measured[name]["kd_loss_ratio"] == pytest.approx(1, abs=1e-3)


def test_errors_fall_with_what_is_sent(measured: dict[str, dict[str, Any]]) -> None:
    for names in (("k = 8", "k = 64", "k = 256"), ("n = 10", "n = 50", "n = 200")):
        errors = [measured[name]["kd_gradient_relative_error"] for name in names]
        sizes = [measured[name]["bytes_per_student_step"] for name in names]
        cosines = [measured[name]["kd_gradient_cosine"] for name in names]
        assert errors == sorted(errors, reverse=True) and errors[0] > 2 * errors[-1] > 0
        assert sizes == sorted(sizes) and cosines == sorted(cosines)
        assert all(
            measured[name]["gradient_relative_error"] < measured[name]["kd_gradient_relative_error"] for name in names
        )


def test_what_is_drawn_averages_out_and_its_loss_is_too_high(measured: dict[str, dict[str, Any]]) -> None:
    for name in ("n = 10", "n = 50", "n = 200"):
        row = measured[name]
        assert row["seeds"] == 4
        assert row["kd_gradient_relative_error_of_mean"] < 0.7 * row["kd_gradient_relative_error"]
        assert row["kd_loss_ratio"] > 1.01


def test_bytes_are_those_of_the_positions(measured: dict[str, dict[str, Any]]) -> None:
    vocab, positions = measured["float32"]["vocab"], measured["float32"]["positions"]
    expected = {
        "float32": positions * vocab * 4,
        "float16": positions * vocab * 2,
        "factored": (positions + vocab) * 16 * 4,
        "k = 8": positions * (8 * 8 + 4),
        "n = 50": positions * 50 * 4,
        "float32 sum": positions * vocab * 4,
    }
    assert {name: measured[name]["bytes_per_student_step"] for name in expected} == pytest.approx(expected)


def test_a_measurement_leaves_the_peers_as_they_were(peers: Trained) -> None:
    student = unclipped(peers.learners[1])
    before = student.weights().tobytes()
    first, again = (learned(student, peers.batches[0], []) for _ in range(2))
    assert student.weights().tobytes() == before
    assert torch.equal(first.gradient_P, again.gradient_P), "the same dropout every time"
    assert first.gradient_P.numel() == sum(parameter.numel() for parameter in student.model.parameters())
    clipped = learned(peers.learners[1], peers.batches[0], []).gradient_P
    assert float(clipped.norm()) == pytest.approx(min(1.0, float(first.gradient_P.norm())), rel=1e-3)


def test_gradients_are_compared_as_vectors() -> None:
    assert difference(torch.tensor([0.0, 2.0]), torch.tensor([1.0, 0.0])) == (pytest.approx(math.sqrt(5)), 0.0)
    assert difference(torch.tensor([3.0, 0.0]), torch.tensor([2.0, 0.0])) == (0.5, 1.0)


def test_reduced_probabilities_are_the_mean_of_the_others() -> None:
    probs = [torch.tensor([[0.5, 0.5]]), torch.tensor([[0.0, 1.0]]), torch.tensor([[0.5, 0.5]])]
    (payload,) = received([Payload("mean", {"qa": own}) for own in probs])
    torch.testing.assert_close(payload.tensors["qa"], torch.tensor([[0.25, 0.75]]))
    others = [Payload("dense", {"qa": own}) for own in probs]
    assert received(others) == others[1:]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder that a hub might have given: a tiny untrained model and its tokeniser."""
    folder = tmp_path / "model"
    base = train_base(texts(), 400)
    base.save_pretrained(str(folder))
    config = GPT2Config(vocab_size=len(base), n_positions=128, n_embd=16, n_layer=1, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(str(folder))
    return folder


def options(model: Path, **changed: int) -> list[str]:
    numbers = {"positions": 60, "examples": 10, "steps": 2, "batches": 1, "seeds": 1} | changed
    return [
        *("--model", str(model), "--tasks", *TASKS),
        *(text for name, value in numbers.items() for text in (f"--{name}", str(value))),
    ]


def test_the_command_prints_objects_or_a_table(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*options(model), "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["codec"] for line in lines] == [values["codec"] for values in SETTINGS.values()]
    assert {line["peers"] for line in lines} == {2}
    assert main(options(model)) == 0
    heading, _, *body = capsys.readouterr().out.splitlines()
    assert [cell.strip() for cell in heading.strip("| ").split("|")] == ["codec", *codecs.COLUMNS.values()]
    assert body[0].startswith("| dense float32") and body[-1].startswith("2 peers, ")


def test_bad_input_is_refused(model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("RAY_L4_DATA", raising=False)
    for arguments, message in (
        ([], "give --model NAME, or the folder that holds tokenizer/gpt2 and raw/: --data FOLDER, or RAY_L4_DATA"),
        (options(model, peers=1), "--peers 1: whoever is alone learns from nobody; expected 2 or more"),
        (options(model, batches=50), "50 batches of"),
        ([*options(model), "--temperature", "0"], "distillation.temperature"),
    ):
        assert main(arguments) == ConfigError.exit_code
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--steps", "0"])


@pytest.mark.shared_data
def test_gpt2_s_vocabulary_is_the_default(shared_data: Path) -> None:
    arguments = codecs._arguments().parse_args(["--data", str(shared_data), "--examples", "5"])
    own = codecs._experiment(arguments)
    tokenizer = codecs._tokenizer(arguments, own)
    assert 50_257 < tokenizer.size < 50_300
    assert [load(task, "train", own.data).num_rows for task in own.stream if task.name == "e2enlg"] == [5]
    assert set(tokenizer.gen) == set(codecs.TASKS)


def test_every_setting_is_one_that_a_profile_may_ask_for() -> None:
    for values in SETTINGS.values():
        build_codec(ExchangeConfig.model_validate(values), experiment())
