"""A step on tensors without data takes as much memory, and sends as many bytes, as a real step."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from ray_l4.learner import blocks
from ray_l4.learner.stage_run import StageRun
from ray_l4.losses import head_gradient
from ray_l4.losses.chunked import row_chunks
from ray_l4.losses.targets import Targets
from ray_l4.methods import METHODS, graph_of, resolved
from ray_l4.planning import decoding_memory, simulated_step
from ray_l4.planning.batch_shape import batch_shape
from ray_l4.planning.decoding_memory import simulate_decoding
from ray_l4.planning.meta_models import vocabulary_of
from ray_l4.planning.simulated_step import SimulatedStep, simulate_step
from tests.learner import architectures
from tests.planning.planning_fixtures import SHAPE, cpu_trace, experiment, profile, train_for_real

POSITIONS = 4 * (24 + 48)
"""Four examples of 48 tokens, with answers of 23 tokens and an EOS."""
WIDTH, ENTRIES = 64, 600 + 3 + 9


def simulated(config: Any = None, peers: tuple[int, ...] = (0,), gpu: bool = False, **sections: Any) -> SimulatedStep:
    config, cluster = config or experiment(), profile(**sections)
    batch = batch_shape(config, cluster)
    return simulate_step(config, cluster.exchange, vocabulary_of(config), batch, peers, gpu=gpu)


@cache
def plain() -> SimulatedStep:
    """The step of the default experiment and profile."""
    return simulated()


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "torch's AdamW": ({"optim": {"variant": "torch"}}, {}),
    "bfloat16": ({"model": {"from_scratch": SHAPE, "precision": "bfloat16"}}, {}),
    "recomputed activations": ({"model": {"from_scratch": {**SHAPE, "layers": 3}, "gradient_checkpointing": True}}, {}),
    "micro-batches": ({}, {"students": {"micro_batch": 1}}),
    "a slice of the batch": ({}, {"students": {"shards_per_student": 2}}),
    "topk": ({}, {"exchange": {"codec": "topk"}}),
}


def test_a_model_that_does_not_learn_takes_the_memory_of_its_weights() -> None:
    frozen = simulated(experiment("retrieve"))
    assert set(frozen.tensors) == {"weights"} and frozen.payload == 0
    assert frozen.saved == simulated(experiment("finetune")).saved <= frozen.tensors["weights"]


@pytest.mark.parametrize("name", CASES)
def test_memory_agrees_with_that_of_real_tensors(name: str) -> None:
    """The plain twin: the same step on real tensors, traced storage by storage."""
    sections, cluster = CASES[name]
    config, trace = experiment(**sections), cpu_trace()
    train_for_real(config, profile(**cluster), trace)
    assert sum(simulated(config, **cluster).tensors.values()) == pytest.approx(sum(trace.peak.values()), rel=0.01)


def test_nothing_is_compiled_for_a_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks.torch.compiler, "set_stance", None)  # which the compilation of blocks needs
    assert simulated(experiment(model={"from_scratch": SHAPE, "compile": True})) == plain()


def test_chunks_of_the_loss_that_are_not_rehearsed_would_need_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_gradient, "row_chunks", lambda rows, vocab, *sizes: row_chunks(rows, vocab, 20 * vocab, 1))
    rehearsed = simulated()
    monkeypatch.setattr(simulated_step, "rehearsed_chunks", nullcontext)
    whole = simulated()
    assert rehearsed.tensors == pytest.approx(whole.tensors, rel=1e-3)
    assert rehearsed.resident == pytest.approx(whole.resident, rel=1e-3)


EXPECTED_BYTES = {
    "dense": 4 * POSITIONS * ENTRIES,
    "factored": 4 * (POSITIONS + ENTRIES) * WIDTH,
    "auto": 4 * (POSITIONS + ENTRIES) * WIDTH,
    "topk": POSITIONS * (10 * 8 + 4),
    "sampled": POSITIONS * 20 * 4,
    "mean": 4 * POSITIONS * ENTRIES,
}


@pytest.mark.parametrize("codec", EXPECTED_BYTES)
def test_payload_bytes_are_those_of_the_codec(codec: str) -> None:
    exchange = {"codec": codec, "top_k": 10, "samples": 20, "transport": "collective"}
    step = simulated(exchange=exchange)
    assert step.payload == step.received == EXPECTED_BYTES[codec]
    if codec != "mean":  # its targets are made by the reduction
        assert train_for_real(experiment(), profile(exchange=exchange), cpu_trace()) == step.payload


@pytest.mark.slow
def test_float16_halves_a_payload_and_ranks_share_it() -> None:
    dense = EXPECTED_BYTES["dense"]
    assert simulated(exchange={"precision": "float16"}).payload == dense // 2
    assert simulated(students={"shards_per_student": 2}).payload == dense // 2
    assert simulated(students={"micro_batch": 1}).payload == dense, "all micro-batches are published together"


@pytest.mark.parametrize(
    "method", ["finetune", "lamol", "er", "ewc", "mas", "agem", "lwf", "l2kd-word", "multi-qa", "l4-released", "derpp"]
)
def test_every_kind_of_method_can_be_simulated(method: str) -> None:
    config = experiment(method)
    step = simulated(config, peers=tuple(range(graph_of(config).size)))
    assert {"weights", "activations"} <= step.tensors.keys()
    assert bool(step.payload) is bool(graph_of(config).edges)
    if METHODS[method].guard in ("fisher", "sensitivity"):
        assert step.tensors["guard"] == 2 * 4 * step.parameters.total, "importance and anchor"


def test_subspaces_of_adapters_are_planned(tmp_path: Path) -> None:
    """With all of them, and without room for a guard of their own."""
    architectures.GPT2.save_pretrained(tmp_path)
    model = {"name": str(tmp_path), "lora": {"rank": 2}}
    alone = simulated(experiment("finetune", model=model))
    config = resolved(experiment("olora", model=model))
    parts = simulated(config)
    rows = model_rows(config)
    assert parts.saved - rows == 8 * (alone.saved - rows), "8 subspaces, and the rows of new tokens once"
    assert "guard" not in parts.tensors


def model_rows(config: Any) -> int:
    """Bytes of the rows of new tokens, which are trained beside adapters."""
    vocabulary = vocabulary_of(config)
    return 4 * architectures.GPT2.n_embd * (vocabulary.size - vocabulary.base)


def test_memory_of_each_purpose() -> None:
    step = plain()
    weights = 4 * step.parameters.total
    assert step.tensors["weights"] == weights
    assert step.received == 4 * POSITIONS * ENTRIES
    assert step.tensors["exchange"] == 2 * step.received, "its own logits, which are its payload, and those received"
    assert step.saved == weights
    assert step.resident >= sum(step.tensors.values())


def test_micro_batches_need_less_for_activations() -> None:
    whole, parts = plain(), simulated(students={"micro_batch": 1})
    assert parts.tensors["activations"] == pytest.approx(whole.tensors["activations"] / 4, rel=0.1)


def test_recomputed_activations_need_less_memory() -> None:
    shape = {**SHAPE, "layers": 4}
    kept = simulated(experiment(shape=shape))
    again = simulated(experiment(model={"from_scratch": shape, "gradient_checkpointing": True}))
    assert again.tensors.get("activations", 0) < 0.5 * kept.tensors["activations"]
    assert sum(again.tensors.values()) < sum(kept.tensors.values())


@pytest.mark.parametrize("name", ["from scratch", "pretrained"])
def test_activations_can_be_recomputed_on_a_gpu(name: str, tmp_path: Path) -> None:
    """The repetition of a layer in the backward pass takes the same operators, and less memory."""
    architectures.GPT2.save_pretrained(tmp_path)
    model = (
        {"name": str(tmp_path)} if name == "pretrained" else {"from_scratch": {**SHAPE, "layers": 4, "dropout": 0.1}}
    )
    kept, again = (
        simulated(experiment(model=model | more), gpu=True) for more in ({}, {"gradient_checkpointing": True})
    )
    assert sum(again.tensors.values()) < sum(kept.tensors.values())


def test_peers_of_one_process_add_up() -> None:
    one, both = plain(), simulated(peers=(0, 1), exchange={"transport": "in_process"})
    assert both.tensors["weights"] == 2 * one.tensors["weights"]
    assert both.tensors["activations"] == pytest.approx(2 * one.tensors["activations"], rel=0.05)
    assert both.tensors["exchange"] == 2 * one.payload, "the predictions of each peer, without copies"


def test_a_frozen_teacher_has_no_optimiser() -> None:
    teacher = simulated(experiment("l2kd-word"), peers=(1,))
    assert "optimiser" not in teacher.tensors and "gradients" not in teacher.tensors
    assert teacher.received == 0 and teacher.payload == EXPECTED_BYTES["dense"]


def test_more_teachers_send_more_bytes() -> None:
    assert simulated(experiment(peers={"count": 4})).received == 3 * EXPECTED_BYTES["dense"]


def test_a_gpu_keeps_no_attention_weights_and_small_masks() -> None:
    long = experiment(model={"from_scratch": {**SHAPE, "positions": 256, "dropout": 0.1}})
    cpu, gpu = simulated(long), simulated(long, gpu=True)
    per_layer = 8 * 4 * 256 * 256 * 4
    saved = sum(cpu.tensors.values()) - sum(gpu.tensors.values())
    assert saved >= 2 * per_layer, "attention weights, and the same again in the backward pass"
    assert gpu.tensors["exchange"] == cpu.tensors["exchange"]


def test_decoding_holds_a_model_and_a_cache() -> None:
    config = experiment(evaluation={"chunk": 8}, replay={"chunk": 16})
    step = simulate_decoding(config, vocabulary_of(config))
    keys_and_values = 2 * 16 * 48 * WIDTH * 4
    assert step.tensors["weights"] == 4 * plain().parameters.total
    assert keys_and_values < step.tensors["cache"] < 12 * keys_and_values
    assert simulate_decoding(config, vocabulary_of(config), 24).tensors["cache"] < step.tensors["cache"]


def test_decoding_on_a_cpu_holds_the_rows_that_fit_its_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    config = experiment(evaluation={"chunk": 8}, replay={"chunk": 16})
    row = 2 * 48 * WIDTH * 4
    monkeypatch.setattr(decoding_memory, "cache_budget", lambda device: 5 * row + 1)
    cpu, gpu = (simulate_decoding(config, vocabulary_of(config), gpu=gpu).tensors["cache"] for gpu in (False, True))
    assert 5 * row < cpu
    assert gpu - cpu >= 11 * row


@pytest.mark.parametrize("method", ["l4", pytest.param("ewc", marks=pytest.mark.slow)])
def test_a_learner_may_read_values_as_often_as_it_likes(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    config = experiment(method)
    peers = tuple(range(graph_of(config).size))
    before, backward = simulated(config, peers), StageRun.backward

    def curious(run: StageRun, step: int, targets: Sequence[Mapping[str, Targets]]) -> dict[str, float]:
        for parameter in run.learner.model.parameters():
            values = (parameter[..., 0].reshape(-1)[0].item() for _ in range(3))
            assert all(0 <= value <= 1 for value in values)
        figures = backward(run, step, targets)
        assert torch.isfinite(torch.tensor([*figures.values()])).all()
        return figures

    monkeypatch.setattr(StageRun, "backward", curious)
    assert simulated(config, peers) == before


@pytest.mark.parametrize("name", ["LLAMA", "GEMMA2"])
def test_models_that_scale_or_cap_their_logits_are_simulated_with_all_of_them(tmp_path: Path, name: str) -> None:
    """Others compute logits at the scored positions alone; the simulated learner must take the way of the real one."""
    architectures.untrained(copy.deepcopy(getattr(architectures, name))).save_pretrained(tmp_path)
    config, trace = experiment(model={"name": str(tmp_path)}), cpu_trace()
    train_for_real(config, profile(), trace)
    assert sum(simulated(config).tensors.values()) == pytest.approx(sum(trace.peak.values()), rel=0.02)


def test_students_that_are_scored_together_are_held_together() -> None:
    wide = {"from_scratch": {"width": 2 * WIDTH}}
    alone, equal, different = (
        experiment(method="l4", peers=peers, evaluation={"chunk": 8, "together": together}, replay={"chunk": 16})
        for together, peers in ((False, {"count": 3}), (True, {"count": 3}), (True, {"each": [{}, {"model": wide}]}))
    )
    one, three, two = (simulate_decoding(each, vocabulary_of(each)).tensors for each in (alone, equal, different))
    assert three["weights"] == 3 * one["weights"]
    keys_and_values = 2 * 16 * 48 * WIDTH * 4
    assert three["cache"] > one["cache"] + 1.9 * keys_and_values, "the caches of two more, beside the same activations"
    assert two["weights"] > 3 * one["weights"], "a model of twice the width has more than twice the weights"
