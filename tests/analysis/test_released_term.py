"""The measurement of L4's released distillation term, against closed forms and end to end on a small run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from analysis.released_term import METHODS, Pair, main, measure, pairs_of, preset, spec_of
from ray_l4.config.cluster import ClusterConfig
from ray_l4.config.experiment import ExperimentConfig
from ray_l4.learner.models import build_model, describe, to_bytes
from ray_l4.losses.objective import ObjectiveSpec
from ray_l4.report.finished_run import FinishedRun
from ray_l4.setup.setup import prepare
from ray_l4.store.atomic import write_json
from ray_l4.store.records import write_checkpoint
from ray_l4.store.run_directory import RunDirectory

LM_WEIGHT = 0.25


def write_run(folder: Path, students: int = 2, tasks: int = 2, summary: bool = True) -> Path:
    """Write a run directory with checkpoints of untrained students that differ."""
    stream = [{"name": name, "train": 10, "test": 2} for name in ("mini.woz", "mini.sql")[:tasks]]
    shape = {"layers": 1, "width": 32, "heads": 2, "positions": 128, "vocabulary": 300}
    experiment = ExperimentConfig.model_validate(
        {"stream": stream, "model": {"from_scratch": shape}, "training": {"epochs": 1, "lm_weight": LM_WEIGHT}}
    )
    setup = prepare(experiment)
    run = RunDirectory.create(folder, setup.experiment, ClusterConfig(), {})
    setup.tokenizer.save(folder / "tokenizer")
    for student in range(students):
        model = build_model(experiment.model, setup.tokenizer, seed=student)
        for stage in range(tasks):
            weights = to_bytes(model)
            write_checkpoint(run.checkpoint(stage, 1, student), weights, describe(model), folder / "tokenizer")
    if summary:
        write_json(folder / "summary.json", summary_of(students, [task["name"] for task in stream]))
    return folder


def summary_of(students: int, tasks: list[str]) -> dict[str, Any]:
    """Return a summary of which nothing but its presence matters here."""
    slots = [str(student) for student in range(students)]
    rest: dict[str, Any] = {name: {} for name in ("peak_memory_bytes", "exchange", "replay")}
    return rest | {
        "name": "pair",
        "method": "l4",
        "stream": tasks,
        "peers": students,
        "seed": 0,
        "score_matrix": dict.fromkeys(slots, [[None] * len(tasks)] * len(tasks)),
        "final": dict.fromkeys(slots, dict.fromkeys(tasks)),
        "wall_seconds": 1.0,
    }


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    run = FinishedRun.open(write_run(tmp_path_factory.mktemp("runs") / "run"))
    return next(iter(pairs_of(run, None, 4)))


def test_at_equal_temperatures_the_ratio_is_the_closed_form(pair: Pair) -> None:
    """It is lambda / lambda' times V, for the term and for its gradient; both average the same sum."""
    token = measure(pair, ObjectiveSpec(0.2, 2.0), LM_WEIGHT)
    vocabulary = measure(pair, ObjectiveSpec(0.6, 2.0, average="vocabulary"), LM_WEIGHT)
    expected = pair.vocabulary / 3
    assert token.distillation / vocabulary.distillation == pytest.approx(expected, rel=1e-4)
    assert token.distillation_gradient / vocabulary.distillation_gradient == pytest.approx(expected, rel=1e-3)
    assert (token.labels, token.labels_gradient) == (vocabulary.labels, vocabulary.labels_gradient)


def test_the_released_term_is_what_the_released_code_computes(pair: Pair) -> None:
    """``kl_div`` with the mean over everything, times T squared and lambda (REFERENCE.md#l4-released)."""
    student, peer = pair.students
    expected = 0.0
    for head, positions in pair.batch.heads.items():
        z, t = (model(pair.batch.input_ids_RT).logits.flatten(0, 1)[positions.positions_N] for model in (student, peer))
        kl = functional.kl_div((z / 0.5).log_softmax(-1), (t / 0.5).softmax(-1), reduction="none").mean()
        expected += (1.0 if head == "qa" else LM_WEIGHT) * 0.2 * 0.25 * kl.item()
    terms = measure(pair, ObjectiveSpec(0.2, 0.5, average="vocabulary"), LM_WEIGHT)
    assert terms.distillation == pytest.approx(expected, rel=1e-4)


def test_the_label_term_is_lamol_s_loss_and_its_gradient(pair: Pair) -> None:
    student, _ = pair.students
    loss = torch.zeros(())
    for head, positions in pair.batch.heads.items():
        z = student(pair.batch.input_ids_RT).logits.flatten(0, 1)[positions.positions_N]
        losses = functional.cross_entropy(z, positions.targets_N, reduction="none") * positions.weights_N
        loss = loss + (1.0 if head == "qa" else LM_WEIGHT) * losses.sum() / positions.weights_N.sum()
    loss.backward()
    norm = torch.stack([p.grad.norm() for p in student.parameters()]).norm()
    student.zero_grad()
    terms = measure(pair, ObjectiveSpec(0.2, 2.0), LM_WEIGHT)
    assert terms.labels == pytest.approx(loss.item(), rel=1e-5)
    assert terms.labels_gradient == pytest.approx(norm.item(), rel=1e-4)


def test_two_students_that_agree_have_nothing_to_teach(pair: Pair) -> None:
    same = Pair("same", (pair.students[0], pair.students[0]), pair.batch, pair.vocabulary)
    terms = measure(same, ObjectiveSpec(0.2, 2.0), LM_WEIGHT)
    assert (terms.distillation, terms.distillation_gradient) == pytest.approx((0.0, 0.0), abs=1e-6)
    assert terms.labels > 1


def test_the_methods_are_measured_as_they_come() -> None:
    experiment = ExperimentConfig.model_validate(
        {"stream": ["mini.woz"], "model": {"name": "m"}, "distillation": {"weight": 7.0}}
    )
    specs = [spec_of(preset(name, experiment)) for name in METHODS]
    assert specs == [ObjectiveSpec(0.2, 2.0), ObjectiveSpec(0.2, 0.5, "forward", "vocabulary")]


def test_the_command_prints_both_methods_before_and_after_the_last_task(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run")
    assert main([str(run), "--tokenizer", str(run / "tokenizer"), "--examples", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "3 examples of mini.sql, lm head weighted 0.25"
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[4:]]
    kinds = ["`l4`", "`l4-released`", "ratio"]
    assert [(row[0], row[2]) for row in rows] == [
        (title, kind) for title in ("before mini.sql", "after mini.sql", "untrained") for kind in kinds
    ]
    for default, released, ratio in (rows[0:3], rows[3:6], rows[6:9]):
        assert float(ratio[4].replace(",", "")) == pytest.approx(float(default[4]) / float(released[4]), rel=0.02)
        assert float(ratio[7].replace(",", "")) == pytest.approx(float(default[7]) / float(released[7]), rel=0.02)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"students": 1}, "expected a run of two tasks or more and two students"),
        ({"tasks": 1}, "expected a run of two tasks or more and two students"),
        ({"summary": False}, "the run did not finish"),
    ],
)
def test_a_run_that_cannot_be_measured_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, int], message: str
) -> None:
    run = write_run(tmp_path / "run", **changes)  # type: ignore[arg-type]
    assert main([str(run)]) != 0
    assert message in capsys.readouterr().err


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) != 0
    assert capsys.readouterr().err.startswith("error: ")
