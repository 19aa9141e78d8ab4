"""Peers that differ, in graphs of all kinds, from the first check to the summary: in one process, without Ray."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from transformers import GPT2Config, PreTrainedModel

from ray_l4.config.experiment import ExperimentConfig
from ray_l4.config.model import ModelConfig
from ray_l4.errors import ConfigError
from ray_l4.learner.models import blank_model, build_model, describe, to_bytes
from ray_l4.report.finished_run import FinishedRun
from ray_l4.report.html.page import render
from ray_l4.report.markdown import run_report
from ray_l4.run.coordinator import StoppedError
from ray_l4.run.session import start
from ray_l4.setup.setup import prepare
from ray_l4.store.run_directory import RunDirectory
from ray_l4.text.base_tokenizer import train_base
from ray_l4.text.tokenizer import TaskTokenizer
from ray_l4.workers.evaluator import Evaluator
from tests.learner import adapter_fixtures as adapted
from tests.learner import learner_fixtures
from tests.run import run_fixtures as small

IN_PROCESS = small.cluster("in_process")
EACH: list[dict[str, Any]] = [
    {},
    {"lr": 1e-3, "dropout": 0.0},
    {"seed": 7},
    {"model": {"from_scratch": {"width": 48, "layers": 2, "positions": 80}}},
]


def different(**peers: Any) -> ExperimentConfig:
    """Four peers, none like another, that all generate."""
    replay = {"ratio": 1.0, "generator": "pool", "max_length": 64, "chunk": 8}
    sizes = {"training": {"epochs": 1}, "evaluation": {"limit": 4}}
    return small.quick("l4", replay=replay, **sizes, peers={"count": 4, "topology": "ring", "each": EACH} | peers)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> small.Finished:
    return small.complete_run(different(), IN_PROCESS, tmp_path_factory.mktemp("peers") / "run")


def checkpoint(run: RunDirectory, student: int, stage: int = 0) -> dict[str, Any]:
    return load_file(run.checkpoint(stage, 1, student) / "model.safetensors")


def test_every_student_learns_with_what_is_its_own(finished: small.Finished) -> None:
    run, summary = finished
    assert (summary["peers"], summary["topology"]) == (4, "ring")
    rows = run.step_figures()
    peaks = {student: max(row["lr"] for row in rows if row["student"] == student) for student in range(4)}
    assert peaks[1] == pytest.approx(peaks[0] / 10) and peaks[0] == peaks[2] == peaks[3]
    configs = [json.loads((run.checkpoint(1, 1, student) / "config.json").read_text()) for student in range(4)]
    assert [config["n_embd"] for config in configs] == [32, 32, 32, 48]
    assert [config["n_layer"] for config in configs] == [1, 1, 1, 2]
    assert [config["attn_pdrop"] for config in configs] == [0.1, 0.0, 0.1, 0.1]
    assert checkpoint(run, 3)["transformer.wte.weight"].shape[1] == 48


def test_all_see_the_same_batches(finished: small.Finished) -> None:
    rows = finished[0].step_figures()
    of = [
        [(row["stage"], row["step"], row["samples"], row["tokens"]) for row in rows if row["student"] == student]
        for student in range(4)
    ]
    assert of[0] and of[0] == of[1] == of[2] == of[3]


def test_all_of_them_generate_and_are_scored(finished: small.Finished) -> None:
    run, summary = finished
    assert {row["student"] for row in small.replayed(run)} == {0, 1, 2, 3}
    assert all(score is not None for matrix in summary["score_matrix"].values() for row in matrix for score in row)
    assert len(run.scores()) == 4 * 2 * 2


def test_the_longest_sequence_is_that_of_the_smallest() -> None:
    assert prepare(different()).max_length == 80
    wide = [{}, {"model": {"from_scratch": {"positions": 512}}}]
    assert prepare(small.quick("l4", peers={"each": wide})).max_length == 96
    short = [{}, {"model": {"from_scratch": {"positions": 512}, "max_length": 70}}]
    assert prepare(small.quick("l4", peers={"each": short})).max_length == 70


def test_the_reports_hold_all_four(finished: small.Finished) -> None:
    run, _ = finished
    report = FinishedRun.open(run.path)
    text, page = run_report(report), render([report])
    assert "Who learns from whom: ring: every student from the one before it." in text
    beside = text.partition("## Students compared")[2].partition("## Student 0")[0]
    assert [line.split("|")[1].strip() for line in beside.splitlines() if line.startswith("| ")][2:] == list("0123")
    assert all(f"matrix-{student}" in page and f"curves-{student}" in page for student in range(4))


def test_a_seed_changes_dropout_and_the_start_and_nothing_else(tmp_path: Path) -> None:
    """Without a seed of its own, student 0 is the one of a run without ``each``; with one, from the start another."""

    def weights(name: str, each: list[dict[str, Any]], **peers: Any) -> list[dict[str, Any]]:
        sizes = {"training": {"epochs": 1}, "evaluation": {"limit": 2}, "stream": [{"name": "mini.rest", "train": 8}]}
        config = small.quick(
            "l4", distillation={"weight": 0.0, "batches": "shared"}, peers={"each": each} | peers, **sizes
        )
        run, _ = small.complete_run(config, IN_PROCESS, tmp_path / name)
        return [checkpoint(run, student) for student in range(2)]

    def equal(one: dict[str, Any], other: dict[str, Any]) -> bool:
        return all(one[name].equal(other[name]) for name in one)

    plain, nothing, seeded = weights("a", []), weights("b", [{}, {}]), weights("c", [{}, {"seed": 5}])
    assert equal(plain[0], nothing[0]) and equal(plain[1], nothing[1]) and equal(plain[0], seeded[0])
    assert not equal(plain[1], seeded[1])
    twin = weights("d", [{"seed": 5, "dropout": 0.0}, {"seed": 5, "dropout": 0.0}])
    assert equal(*twin), "one seed, one start, one order of examples, and no dropout"


def test_peers_that_would_stay_equal_draw_a_warning_unless_something_differs(tmp_path: Path) -> None:
    still = {"from_scratch": {"layers": 1, "width": 32, "heads": 2, "positions": 96, "vocabulary": 400, "dropout": 0.0}}
    for name, each in {"equal": [], "equal too": [{"seed": 1}] * 2, "other": [{}, {"seed": 1}]}.items():
        config = small.quick(
            "l4", model=still, peers={"each": each}, training={"epochs": 1}, distillation={"batches": "shared"}
        )
        setup, run = small.new_run(config, IN_PROCESS, tmp_path / name)
        session = start(setup, IN_PROCESS, run)
        while not (events := session.snapshot().events):
            assert not session.wait(0.005)
        session.close()
        with pytest.raises(StoppedError):
            session.result()
        assert any("will stay equal" in event for event in events) == name.startswith("equal"), events


@pytest.mark.slow
def test_a_run_with_edges_from_a_file_goes_on_without_the_file(tmp_path: Path) -> None:
    edges = tmp_path / "edges.txt"
    edges.write_text("0 1  # a chain: nobody teaches 0\n1 2\n")
    each = [{}, {"lr": 5e-3}, {"model": {"from_scratch": {"width": 16}}}]
    config = different(count=3, topology=str(edges), each=each)
    undisturbed, expected = small.complete_run(config, IN_PROCESS, tmp_path / "undisturbed")
    assert expected["topology"] == [[0, 1], [1, 2]]
    _, run = small.stopped_run(config, tmp_path / "stopped", "learning mini.woz")
    edges.unlink()
    stopped = RunDirectory.open(run.path)
    assert stopped.experiment().peers.topology == [[0, 1], [1, 2]]
    found = small.finish(start(prepare(stopped.experiment()), IN_PROCESS, stopped))
    small.assert_equal(stopped, undisturbed)
    assert found["topology"] == expected["topology"]
    kd = {
        student: {row["kd_qa"] > 0 for row in stopped.step_figures() if row["student"] == student}
        for student in range(3)
    }
    assert kd[0] == {False} and True in kd[1] and True in kd[2]


@pytest.mark.slow
def test_students_that_learn_in_turn_may_form_a_ring(tmp_path: Path) -> None:
    config = different(count=3, each=[{}, {"lr": 5e-3}, {"seed": 4}])
    in_turn = config.model_copy(
        update={"distillation": config.distillation.model_copy(update={"schedule": "alternate_epochs"})}
    )
    run, summary = small.complete_run(in_turn, IN_PROCESS, tmp_path / "run")
    assert summary["peers"] == 3
    assert all(row["kd_qa"] > 0 for row in run.step_figures())


def test_a_student_smaller_than_its_teacher_learns_from_it(tmp_path: Path) -> None:
    """Words from its predictions; sequences from its answers, which evaluators decode with a model of its size."""
    for method in ("l2kd-word", "l2kd-seq"):
        each = [{"model": {"from_scratch": {"width": 16}}}]
        config = small.quick(method, peers={"each": each}, training={"epochs": 1}, evaluation={"limit": 2})
        run, _ = small.complete_run(config, IN_PROCESS, tmp_path / method)
        teachers = RunDirectory.open(run.teachers())
        assert checkpoint(run, 0)["transformer.wte.weight"].shape[1] == 16
        assert checkpoint(teachers, 0)["transformer.wte.weight"].shape[1] == 32


def test_an_earlier_self_has_the_size_of_the_student(tmp_path: Path) -> None:
    each = [{"model": {"from_scratch": {"width": 16}}}]
    config = small.quick("lwf", peers={"each": each}, training={"epochs": 1}, evaluation={"limit": 2})
    run, _ = small.complete_run(config, IN_PROCESS, tmp_path / "run")
    assert any(row["kd_qa"] > 0 for row in run.step_figures() if row["stage"] == 1)


# --- evaluators


def test_an_evaluator_builds_another_model_only_for_another_size(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[int] = []

    def counted(config: ModelConfig, tokenizer: TaskTokenizer, description: dict[str, Any]) -> PreTrainedModel:
        built.append(description["n_embd"])
        return blank_model(config, tokenizer, description)

    monkeypatch.setattr("ray_l4.workers.held_models.blank_model", counted)
    each = [{}, {"dropout": 0.4}, {"model": {"from_scratch": {"width": 48}}}]
    setup = prepare(small.quick("l4", peers={"count": 3, "each": each}))
    evaluator = Evaluator(setup, IN_PROCESS)
    shapes = [each_own.model for each_own in setup.experiment.peers.each]
    models = [build_model(shape or setup.experiment.model, setup.tokenizer, seed) for seed, shape in enumerate(shapes)]
    models[1].config.attn_pdrop = 0.4

    def answers(student: int) -> dict[int, str]:
        model = models[student]
        return evaluator.answer(f"c{student}", describe(model), to_bytes(model), student, 0, "mini.woz", [[0, 1]])

    found = [answers(student) for student in (0, 1, 2, 0)]
    assert built == [32, 48, 32], "one that differs in dropout alone is the same model"
    assert found[0] == found[3]
    fresh = Evaluator(setup, IN_PROCESS)
    model = models[2]
    assert found[2] == fresh.answer("c2", describe(model), to_bytes(model), 2, 0, "mini.woz", [[0, 1]])


# --- one tokeniser for all


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Own data, and pretrained models: two sizes with one tokeniser, one with another, one with spare outputs."""
    adapted.save_base(tmp_path / "small", GPT2Config(n_embd=32, n_layer=1, n_head=2, n_positions=80))
    adapted.save_base(tmp_path / "large", GPT2Config(n_embd=48, n_layer=2, n_head=2, n_positions=64))
    adapted.save_base(tmp_path / "foreign", GPT2Config(n_embd=32, n_layer=1, n_head=2, n_positions=64))
    train_base(["quite other words, " * 3], 300).save_pretrained(tmp_path / "foreign")
    adapted.save_base(tmp_path / "padded", GPT2Config(n_embd=32, n_layer=1, n_head=2, n_positions=64), spare_rows=5)
    for task in adapted.TASKS:
        (tmp_path / task).mkdir()
        for split, count in (("train", 8), ("test", 2)):
            lines = [json.dumps(row) for row in learner_fixtures.examples(task, count).to_pylist()]
            (tmp_path / task / f"{split}.jsonl").write_text("\n".join(lines))
    return tmp_path


def pretrained(folder: Path, each: list[dict[str, Any]], **model: Any) -> ExperimentConfig:
    return ExperimentConfig.model_validate(
        {
            "stream": [{"name": task, "path": folder / task, "metric": "em"} for task in adapted.TASKS],
            "model": {"name": str(folder / "small")} | model,
            "training": {"epochs": 1, "batch_size": 4},
            "optim": {"variant": "torch", "lr": 1e-2},
            "replay": {"ratio": 0.5, "max_length": 24, "generator": "pool"},
            "evaluation": {"max_new_tokens": 2},
            "peers": {"count": len(each), "each": each},
        }
    )


def named(folder: Path, name: str, **more: Any) -> dict[str, Any]:
    return {"model": {"name": str(folder / name)} | more}


@pytest.mark.parametrize("lora", [None, {"rank": 2}])
def test_pretrained_models_of_two_sizes_learn_together(folder: Path, lora: dict[str, int] | None) -> None:
    each = [{"dropout": 0.2}, named(folder, "large")]
    config = pretrained(folder, each, **({"lora": lora} if lora else {}))
    assert prepare(config).max_length == 64
    run, summary = small.complete_run(config, IN_PROCESS, folder / "run")
    assert all(score is not None for matrix in summary["score_matrix"].values() for row in matrix for score in row)
    assert all(row["kd_qa"] > 0 for row in run.step_figures() if row["stage"] == 0)
    if lora is None:
        kept = [json.loads((run.checkpoint(1, 1, student) / "config.json").read_text()) for student in range(2)]
        assert [(config["n_embd"], config["resid_pdrop"]) for config in kept] == [(32, 0.2), (48, 0.1)]


def test_another_tokeniser_is_refused_before_anything_starts(folder: Path) -> None:
    config = pretrained(folder, [{}, named(folder, "large"), named(folder, "foreign")])
    with pytest.raises(ConfigError) as raised:
        prepare(config)
    message = str(raised.value)
    assert message.startswith(f"peers.each.2.model.name: peer 2 ({folder / 'foreign'}) cannot learn with peer 0 (")
    assert "tokens differ, such as" in message and "the same tokeniser" in message


def test_other_outputs_behind_one_tokeniser_are_refused(folder: Path) -> None:
    config = pretrained(folder, [named(folder, "padded"), named(folder, "large")])
    with pytest.raises(ConfigError, match=r"peer 0 \(.*padded\) cannot learn with model\.name .* predicts \d+ tokens"):
        prepare(config)


def test_vocabularies_from_scratch_are_compared_too() -> None:
    each = [{}, {"model": {"from_scratch": {"vocabulary": 500}}}]
    with pytest.raises(ConfigError, match="peer 1 has 500, the others have 400"):
        prepare(small.quick("l4", peers={"each": each}))
