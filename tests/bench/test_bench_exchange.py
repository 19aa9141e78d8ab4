"""The cases, measurements and records of ``ray-l4 bench exchange``."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

from ray_l4.bench.gradient_error import Fidelity, Gradients
from ray_l4.bench.grid import BenchCase
from ray_l4.bench.isolated_process import IsolatedProcess
from ray_l4.bench.record import Record, json_line
from ray_l4.bench.students import OnRay
from ray_l4.bench.summary import Measurements, Repeat, summarise
from ray_l4.bench.view import table
from ray_l4.bench.workload import TASK, Workload
from ray_l4.cli.main import app
from ray_l4.cluster.placement import usable_cores
from ray_l4.config.cluster import ExchangeConfig
from ray_l4.errors import ClusterError, ConfigError, PeerError
from ray_l4.learner.models import build_model
from ray_l4.run.step_loop import StepFigures
from ray_l4.text.batches import build_batch
from tests.bench.bench_fixtures import SMALL, grid
from tests.bench.isolated_process_fixtures import Counter

KEYS = (
    *("bench", "transport", "codec", "peers", "vocab", "positions", "bytes_per_student_step", "step_ms_p50"),
    *("wait_fraction", "ratio_to_in_process", "peak_rss_bytes", "gradient_relative_error", "gradient_cosine"),
)


@given(
    vocab=st.integers(300, 400), examples=st.integers(1, 4), tokens=st.integers(8, 70), width=st.sampled_from((16, 128))
)
def test_a_step_has_as_many_positions_as_were_asked_for(vocab: int, examples: int, tokens: int, width: int) -> None:
    load = Workload(vocab, examples, tokens, layers=1, width=width)
    setup = load.setup(peers=2, steps=3)
    stream = setup.training[TASK]
    batch = build_batch(stream, np.arange(examples), setup.method.heads, setup.tokenizer, ans_weight=5.0)
    assert stream.num_rows == 3 * examples
    assert batch.num_tokens == load.positions == examples * tokens
    assert sum(head.num_current for head in batch.heads.values()) == load.positions  # all of them are exchanged
    assert setup.tokenizer.size == vocab > batch.input_ids_RT.max()
    assert load.dense_bytes == 4 * load.positions * vocab


def test_students_start_differently_and_learn_from_all_others() -> None:
    setup = SMALL.setup(peers=3, steps=2)
    assert setup.experiment.peers.init == "own"
    assert setup.topology.teachers_of(1) == (0, 2)
    assert SMALL.setup(3, 2).training[TASK].equals(setup.training[TASK])


def test_the_number_of_parameters_is_that_of_the_model() -> None:
    load = Workload(vocab=3000, examples=1, tokens=16, layers=3, width=128)
    setup = load.setup(2, 1)
    model = build_model(setup.experiment.model, setup.tokenizer, seed=0)
    assert load.num_parameters == pytest.approx(sum(own.numel() for own in model.parameters()), rel=0.01)


def test_too_few_tokens_are_refused() -> None:
    with pytest.raises(ConfigError, match="--tokens 7: expected at least 8"):
        Workload(300, 1, 7, 1, 16).setup(2, 1)


def test_every_codec_goes_with_every_transport_that_can_carry_it() -> None:
    cases = grid(codecs=["mean", "dense", "topk"], precisions=["float32", "float16"]).cases()
    assert [(case.codec, case.precision, case.transport) for case in cases] == [
        ("mean", "float32", "collective"),
        *(
            ("dense", precision, transport)
            for precision in ("float32", "float16")
            for transport in ("in_process", "object_store", "collective")
        ),
        *(("topk", "float32", transport) for transport in ("in_process", "object_store", "collective")),
    ]
    assert cases[0].baseline == BenchCase("in_process", "dense")
    assert cases[-1].baseline == BenchCase("in_process", "topk")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"codecs": ["dens"]}, "no codec is called 'dens'. Did you mean 'dense'?"),
        ({"transports": ["collectiv"]}, "no transport is called 'collectiv'. Did you mean 'collective'?"),
        ({"precisions": ["float8"]}, "no precision is called 'float8'"),
        (
            {"codecs": ["dense", "mean"], "transports": ["object_store"]},
            "mean cannot be combined with any .*transport: collective",
        ),
        (
            {"codecs": ["topk"], "precisions": ["float32", "float16"]},
            "float16 cannot be combined with any .*exchange.codec: dense",
        ),
        ({"transports": ["in_process", "cuda_ipc"]}, "cuda_ipc cannot be combined with any .*GPU memory"),
    ],
)
def test_an_impossible_grid_is_refused(changes: dict[str, Sequence[str]], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        grid(**changes).cases()


@pytest.mark.parametrize("peers", [2, 3, 7, 8, 64])
def test_all_students_fit_on_this_machine_and_one_process_has_their_cores(peers: int) -> None:
    own_grid, cores = grid(peers=[peers]), usable_cores()
    actors, alone = (
        own_grid.profile(BenchCase(transport, "dense"), peers) for transport in ("object_store", "in_process")
    )
    assert 0 < peers * actors.students.cpus <= max(cores, peers)
    assert actors.students.cpus * peers <= cores or actors.students.cpus == 1
    assert (actors.students.threads, alone.students.threads) == (1, min(peers, cores))
    assert actors.evaluators.count == 0
    assert own_grid.steps_per_repeat(peers) * peers >= 2


def test_a_grid_that_this_machine_cannot_hold_is_refused() -> None:
    modest = grid()
    modest.require_room(modest.cases())
    with pytest.raises(ClusterError, match=r"no room for 64 students of .* GB together, and this machine has"):
        grid(peers=[2, 64], workload=Workload(2_000_000, 64, 1024, 2, 64)).require_room([])


@pytest.fixture(scope="module")
def three() -> dict[str, Fidelity]:
    """Codec and precision -> fidelity, with three students."""
    sections = [("dense", "float32"), ("dense", "float16"), ("factored", "float32"), ("topk", "float32")]
    sections += [("sampled", "float32"), ("mean", "float32")]
    exchanges = [
        ExchangeConfig.model_validate({"codec": codec, "precision": precision, "top_k": 4, "samples": 8})
        for codec, precision in sections
    ]
    found = Gradients(SMALL.setup(3, 1)).fidelities(exchanges)
    return {f"{codec} {precision}": own for (codec, precision), own in zip(sections, found, strict=True)}


def test_bytes_are_those_of_the_definition(three: dict[str, Fidelity]) -> None:
    positions, vocab, width = SMALL.positions, SMALL.vocab, SMALL.width
    assert {name: own.payload_bytes for name, own in three.items()} == {
        "dense float32": 4 * positions * vocab,
        "dense float16": 2 * positions * vocab,
        "factored float32": 4 * (positions + vocab) * width,
        "topk float32": positions * (8 * 4 + 4),
        "sampled float32": positions * 4 * 8,
        "mean float32": 4 * positions * vocab,
    }


def test_gradients_are_compared_with_dense_float32(three: dict[str, Fidelity]) -> None:
    error = {name: own.relative_error for name, own in three.items()}
    assert (error["dense float32"], three["dense float32"].cosine) == (0.0, pytest.approx(1.0, abs=1e-12))
    assert error["factored float32"] < 1e-5
    assert 0 < error["mean float32"] < 1e-5  # summed over three peers, minus the student's own
    assert error["mean float32"] < error["dense float16"] < 1e-4 < error["topk float32"] < error["sampled float32"]
    assert three["sampled float32"].cosine < three["topk float32"].cosine < 1


def figures(*seconds: tuple[float, float, float, float], sent: int = 0) -> StepFigures:
    """Return the figures of one step, from each student's seconds in forward, wait, backward and idle."""
    names = ("forward_seconds", "wait_seconds", "backward_seconds", "idle_seconds")
    counts = {"bytes_sent": sent, "bytes_received": 2 * sent}
    return {peer: dict(zip(names, own, strict=True)) | counts for peer, own in enumerate(seconds)}


def measured(repeats: Sequence[Repeat]) -> Measurements:
    return Measurements(2, repeats, 9, [0.3, 0.1, 0.2], 7, Fidelity(100, 0.5, 0.25))


def test_times_are_medians_and_the_ratio_is_taken_repeat_by_repeat() -> None:
    fast, slow = (0.25, 0.25, 0.5, 0.0), (1.0, 0.0, 2.0, 1.0)
    repeats = [  # the case always takes 1 s; the baseline takes 4, 1 and 2 s, as if other work slowed it down
        Repeat([figures(slow, slow)], [figures(fast, fast, sent=10)]),
        Repeat([figures(fast, fast)], [figures(fast, fast, sent=10)]),
        Repeat([figures((1.0, 0.0, 1.0, 0.0), (1.0, 0.0, 1.0, 0.0))], [figures(fast, fast, sent=10)]),
    ]
    found = summarise(grid(), BenchCase("object_store", "dense"), measured(repeats))
    assert (found["step_ms_p50"], found["ratio_to_in_process"], found["wait_fraction"]) == (1000.0, 0.5, 0.25)
    assert (found["bytes_per_student_step"], found["bytes_received_per_student_step"], found["steps"]) == (10, 20, 3)
    assert found["publish_ms_p50"] == pytest.approx(200)
    assert (found["peak_rss_bytes"], found["gradient_relative_error"], found["gradient_cosine"]) == (7, 0.5, 0.25)


def test_a_ring_is_handed_one_payload_whatever_it_sends() -> None:
    series = [figures((1.0, 1.0, 1.0, 1.0), sent=175)]
    found = summarise(grid(), BenchCase("collective", "mean"), measured([Repeat(series, series)]))
    assert (found["bytes_per_student_step"], found["wire_bytes_per_student_step"]) == (100, 175)


def test_in_one_process_nobody_waits_and_nothing_is_sent() -> None:
    series = [figures((1.0, 1.0, 1.0, 1.0), sent=100)]
    found = summarise(grid(), BenchCase("in_process", "dense"), measured([Repeat(series, series)]))
    assert (found["wait_fraction"], found["wait_ms_p50"], found["wire_bytes_per_student_step"]) == (None, None, 0)
    assert found["ratio_to_in_process"] == 1


def test_a_record_is_a_json_line_and_a_row_of_80_columns() -> None:
    series = [figures((9.0, 9.0, 9.0, 9.0), sent=102_926_336)]
    found = summarise(grid(), BenchCase("object_store", "dense", "float16"), measured([Repeat(series, series)]))
    values = json.loads(json_line(found))
    assert tuple(values)[: len(KEYS)] == KEYS
    assert "\n" not in json_line(found)
    printed = Console(width=80, file=io.StringIO())
    printed.print(table([found, found]))
    lines = printed.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert len(lines) == 3
    assert "dense fp16" in lines[1] and "object_store" in lines[1] and "36000" in lines[1] and "…" not in lines[1]


def test_the_mean_is_reduced_by_actors_and_counted_as_a_ring(ray_cluster: None) -> None:
    profile = grid(codecs=["mean"]).profile(BenchCase("collective", "mean"), 2)
    students = OnRay(SMALL.setup(2, 4), profile)
    try:
        first, *later = students.train(3)
        payload = SMALL.dense_bytes
        assert {own["bytes_sent"] for step in later for own in step.values()} == {payload}  # 2 (N - 1) / N of it
        assert all(0 < own["kd_lm"] < 10 for own in first.values())
        assert students.peak_memory() > 10 * 2**20
    finally:
        students.close()


@pytest.mark.end_to_end
def test_the_command_measures_real_students(ray_cluster: None, tmp_path: Path) -> None:
    output = tmp_path / "found.jsonl"
    options = "--transports in_process,object_store --codecs dense --vocab 300 --examples 2 --tokens 16 --layers 1"
    arguments = [*options.split(), "--width", "16", "--steps", "2", "--repeats", "2", "--output", str(output)]
    result = CliRunner().invoke(app, ["bench", "exchange", *arguments, "--json"], catch_exceptions=False)
    assert result.exit_code == 0
    lines = [line for line in result.stdout.splitlines() if line.startswith("{")]
    assert output.read_text(encoding="utf-8").splitlines() == lines
    stored, alone = (Record(**json.loads(line)) for line in lines)
    assert (stored["transport"], alone["transport"]) == ("object_store", "in_process")
    assert stored["bytes_per_student_step"] == stored["bytes_received_per_student_step"] == SMALL.dense_bytes
    assert stored["wire_bytes_per_student_step"] == SMALL.dense_bytes and alone["wire_bytes_per_student_step"] == 0
    assert stored["step_ms_p20"] <= stored["step_ms_p50"] <= stored["step_ms_p80"]
    assert 0 < (stored["wait_fraction"] or 0) < 1 and alone["wait_fraction"] is None
    assert alone["ratio_to_in_process"] == 1 != stored["ratio_to_in_process"]
    assert (stored["steps"], stored["positions"], stored["gradient_relative_error"]) == (4, SMALL.positions, 0)
    assert min(stored["peak_rss_bytes"], alone["peak_rss_bytes"]) > 100 * 2**20  # processes that have loaded PyTorch
    assert not torch.cuda.is_available() or "no GPU" not in stored["machine"]


def test_an_object_in_a_process_of_its_own_keeps_its_state_and_raises_its_errors() -> None:
    process = IsolatedProcess(Counter, 5)
    try:
        assert [process.call("add", 2), process.call("add", 3)] == [7, 10]
        assert process.call("process") != os.getpid()
        with pytest.raises(ClusterError, match="not that one"):
            process.call("add", 13)
        assert process.call("add", 1) == 11
        with pytest.raises(PeerError, match=r"died \(status 3\)"):
            process.call("add", 0)
    finally:
        process.close()
    with pytest.raises(ConfigError, match="-1 is below 0"):
        IsolatedProcess(Counter, -1)
