"""A step on tensors without data takes and sends what a real step does."""

from __future__ import annotations

from typing import Any

import pytest

from ray_l4.methods import METHODS, graph_of
from ray_l4.planning.batch_shape import batch_shape
from ray_l4.planning.decoding_memory import rehearse_decoding
from ray_l4.planning.meta_models import vocabulary
from ray_l4.planning.simulated_step import Rehearsal, rehearse
from tests.planning.planning_fixtures import SHAPE, cpu_ledger, experiment, profile, train_for_real

POSITIONS = 4 * (24 + 48)
"""Four examples of 48 tokens with answers of 23, each answer with its EOS."""
WIDTH, ENTRIES = 64, 600 + 3 + 9


def rehearsed(config: Any = None, peers: tuple[int, ...] = (0,), gpu: bool = False, **sections: Any) -> Rehearsal:
    config, cluster = config or experiment(), profile(**sections)
    shape = batch_shape(config, cluster)
    return rehearse(config, cluster.exchange, vocabulary(config), shape, peers, gpu=gpu)


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "torch's AdamW": ({"optim": {"variant": "torch"}}, {}),
    "bfloat16": ({"model": {"from_scratch": SHAPE, "precision": "bfloat16"}}, {}),
    "micro-batches": ({}, {"students": {"micro_batch": 1}}),
    "a slice of the batch": ({}, {"students": {"shards_per_student": 2}}),
    "topk": ({}, {"exchange": {"codec": "topk"}}),
}


@pytest.mark.parametrize("name", CASES)
def test_it_takes_what_real_tensors_take(name: str) -> None:
    """The plain twin: the same step on real tensors, counted storage by storage."""
    sections, cluster = CASES[name]
    config, ledger = experiment(**sections), cpu_ledger()
    train_for_real(config, profile(**cluster), ledger)
    assert sum(rehearsed(config, **cluster).tensors.values()) == pytest.approx(sum(ledger.peak.values()), rel=0.01)


EXPECTED_BYTES = {
    "dense": 4 * POSITIONS * ENTRIES,
    "factored": 4 * (POSITIONS + ENTRIES) * WIDTH,
    "auto": 4 * (POSITIONS + ENTRIES) * WIDTH,
    "topk": POSITIONS * (10 * 8 + 4),
    "sampled": POSITIONS * 20 * 4,
    "mean": 4 * POSITIONS * ENTRIES,
}


@pytest.mark.parametrize("codec", EXPECTED_BYTES)
def test_bytes_on_the_way(codec: str) -> None:
    exchange = {"codec": codec, "top_k": 10, "samples": 20, "transport": "collective"}
    own = rehearsed(exchange=exchange)
    assert own.payload == own.received == EXPECTED_BYTES[codec]
    if codec != "mean":  # of which the targets are made while it is reduced
        assert train_for_real(experiment(), profile(exchange=exchange), cpu_ledger()) == own.payload


def test_float16_halves_them_and_ranks_share_them() -> None:
    dense = EXPECTED_BYTES["dense"]
    assert rehearsed(exchange={"precision": "float16"}).payload == dense // 2
    assert rehearsed(students={"shards_per_student": 2}).payload == dense // 2
    assert rehearsed(students={"micro_batch": 1}).payload == dense, "all pieces are published together"


@pytest.mark.parametrize(
    "method", ["finetune", "lamol", "er", "ewc", "mas", "agem", "lwf", "l2kd-word", "multi-qa", "l4-released"]
)
def test_every_kind_of_method_can_be_rehearsed(method: str) -> None:
    config = experiment(method)
    own = rehearsed(config, peers=tuple(range(graph_of(config).size)))
    assert {"weights", "activations"} <= own.tensors.keys()
    assert bool(own.payload) is bool(graph_of(config).edges)
    if METHODS[method].guard in ("fisher", "sensitivity"):
        assert own.tensors["guard"] == 2 * 4 * own.parameters.total, "importance and where the weights were"


def test_what_each_purpose_takes() -> None:
    own = rehearsed()
    weights = 4 * own.parameters.total
    assert own.tensors["weights"] == weights
    assert own.tensors["logits"] == 4 * POSITIONS * ENTRIES
    assert own.tensors["exchange"] == own.received
    assert own.saved == weights
    assert own.resident >= sum(own.tensors.values())


def test_smaller_pieces_take_less_for_activations() -> None:
    whole, pieces = rehearsed(), rehearsed(students={"micro_batch": 1})
    assert pieces.tensors["activations"] == pytest.approx(whole.tensors["activations"] / 4, rel=0.1)


def test_peers_of_one_process_add_up() -> None:
    one, both = rehearsed(), rehearsed(peers=(0, 1), exchange={"transport": "in_process"})
    assert both.tensors["weights"] == 2 * one.tensors["weights"]
    assert both.tensors["activations"] == pytest.approx(2 * one.tensors["activations"], rel=0.05)
    assert both.tensors["exchange"] == 2 * one.payload, "each one's predictions, and no copies"


def test_a_teacher_that_does_not_learn_has_no_optimiser() -> None:
    teacher = rehearsed(experiment("l2kd-word"), peers=(1,))
    assert "optimiser" not in teacher.tensors and "gradients" not in teacher.tensors
    assert teacher.received == 0 and teacher.payload == EXPECTED_BYTES["dense"]


def test_more_teachers_send_more() -> None:
    assert rehearsed(experiment(peers={"count": 4})).received == 3 * EXPECTED_BYTES["dense"]


def test_a_gpu_keeps_no_attention_weights_and_small_masks() -> None:
    long = experiment(model={"from_scratch": {**SHAPE, "positions": 256}})
    cpu, gpu = rehearsed(long), rehearsed(long, gpu=True)
    per_layer = 8 * 4 * 256 * 256 * 4
    assert cpu.tensors["activations"] - gpu.tensors["activations"] >= 2 * per_layer, "weights and their mask"
    assert gpu.tensors["logits"] == cpu.tensors["logits"]


def test_decoding_holds_a_model_and_a_cache() -> None:
    config = experiment(evaluation={"chunk": 8}, replay={"chunk": 16})
    own = rehearse_decoding(config, vocabulary(config))
    keys_and_values = 2 * 16 * 48 * WIDTH * 4
    assert own.tensors["weights"] == 4 * rehearsed().parameters.total
    assert keys_and_values < own.tensors["cache"] < 12 * keys_and_values
    assert rehearse_decoding(config, vocabulary(config), 24).tensors["cache"] < own.tensors["cache"]
