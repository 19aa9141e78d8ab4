"""A loss that is not finite: the run keeps the step and ``debug-batch`` repeats it bit for bit, or it is skipped."""

from __future__ import annotations

import pickle
from math import isfinite
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM

from ray_l4.errors import NonFiniteError, RunDirectoryError
from ray_l4.learner.stage_run import StageRun
from ray_l4.methods.copying import changed
from ray_l4.setup.failed_step import repeat
from ray_l4.store.failed_steps import failed_steps
from ray_l4.store.run_directory import RunDirectory, read_json
from tests.cli.cli_fixtures import InThisProcess
from tests.run.run_fixtures import cluster, experiment, finish, new_run, start

BAD_STEP, LAYER = 3, "transformer.h.0.mlp.c_fc"


def spoil(monkeypatch: pytest.MonkeyPatch, steps: set[int], peer: int = 0, value: float = float("nan")) -> None:
    """Put ``value`` into a weight of ``peer`` in these steps of the first stage, and take it out after an update."""
    forward, backward = StageRun.forward, StageRun.backward
    kept: dict[int, float] = {}

    def weight(run: StageRun) -> torch.Tensor:
        return run.learner.model.get_submodule(LAYER).weight.data[0]

    def spoiled(self: StageRun, step: int, **options: Any) -> Any:
        if self.stage == 0 and self.learner.peer == peer and step in steps:
            kept[step] = float(weight(self)[0])
            weight(self)[0] = value
        return forward(self, step, **options)

    def mended(self: StageRun, step: int, targets: Any) -> dict[str, float]:
        figures = backward(self, step, targets)
        if self.stage == 0 and self.learner.peer == peer and step in kept:
            weight(self)[0] = kept.pop(step)
        return figures

    monkeypatch.setattr(StageRun, "forward", spoiled)
    monkeypatch.setattr(StageRun, "backward", mended)


def training(**changes: Any) -> dict[str, Any]:
    return {"epochs": 1, "batch_size": 8} | changes


def failed_run(folder: Path, method: str, micro_batch: int | None = None, **changes: Any) -> tuple[RunDirectory, str]:
    profile = cluster("in_process", students={"micro_batch": micro_batch})
    setup, run = new_run(experiment(method=method, training=training(**changes)), profile, folder)
    with pytest.raises(NonFiniteError) as caught:
        finish(start(setup, profile, run))
    assert caught.value.exit_code == 7
    return run, str(caught.value)


@pytest.mark.parametrize(("method", "micro_batch"), [("finetune", None), ("l4", None), ("l4", 3), ("ewc", None)])
def test_a_failed_step_is_kept_and_repeated_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, micro_batch: int | None
) -> None:
    with monkeypatch.context() as patched:
        spoil(patched, {BAD_STEP})
        run, message = failed_run(tmp_path / "run", method, micro_batch)
    assert message.startswith(f"student 0, stage 0, step {BAD_STEP}: nll_qa nan")
    assert f"ray-l4 debug-batch {run.path}" in message
    (place,) = failed_steps(run, None)
    folder = place.folder(run)
    AutoModelForCausalLM.from_pretrained(folder)
    repeated = repeat(run, place)
    recorded = read_json(folder / "why.json")["figures"]
    finite = {name: value for name, value in recorded.items() if not isinstance(value, str)}
    found = repeated.finding.figures
    assert finite == {name: value for name, value in found.items() if isfinite(value)}
    assert {name: str(found[name]) for name in recorded.keys() - finite} == {
        name: value for name, value in recorded.items() if isinstance(value, str)
    }
    assert repeated.finding.first_output == LAYER
    assert repeated.finding.first_gradient is not None
    assert {index for index, *_ in repeated.finding.losses} == set(range(repeated.batch.num_rows))


def test_a_failed_step_is_repeated_without_compiled_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What happens inside them could not be seen."""
    with monkeypatch.context() as patched:
        spoil(patched, {BAD_STEP})
        run, _ = failed_run(tmp_path / "run", "finetune")
    own = run.experiment()
    compiled = changed(own, model=changed(own.model, compile=True))
    monkeypatch.setattr(RunDirectory, "experiment", lambda self: compiled)
    monkeypatch.setattr(torch.compiler, "set_stance", None)  # which the compilation of blocks needs
    (place,) = failed_steps(run, None)
    assert repeat(run, place).finding.first_output == LAYER


def test_only_the_gradient_may_be_wrong_and_then_finite_figures_are_equal_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        original = StageRun._accumulate_all

        def spoiled(self: StageRun, *given: Any) -> dict[str, torch.Tensor]:
            figures = original(self, *given)
            return figures | {"grad_norm": figures["grad_norm"] * float("inf")} if self.next_step == 2 else figures

        patched.setattr(StageRun, "_accumulate_all", spoiled)
        run, message = failed_run(tmp_path / "run", "l4")
    assert "step 2: grad_norm inf: not finite" in message
    (place,) = failed_steps(run, 0)
    recorded, found = read_json(place.folder(run) / "why.json")["figures"], repeat(run, place).finding
    assert {name: found.figures[name] for name in recorded if name != "grad_norm"} == {
        name: value for name, value in recorded.items() if name != "grad_norm"
    }
    assert recorded["kd_qa"] > 0 and (found.first_output, found.first_gradient) == (None, None)


def test_the_command_shows_it_and_names_a_student_without_a_failed_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patched:
        spoil(patched, {BAD_STEP})
        run, _ = failed_run(tmp_path / "run", "finetune")
    done = InThisProcess(monkeypatch, capsys)("debug-batch", run.path)
    assert done.returncode == 0
    assert f"first output that is not finite: {LAYER}" in done.stdout and "learning rate 0.00" in done.stdout
    with pytest.raises(RunDirectoryError, match=r"no failed step of student 1\. It has those of: 0"):
        failed_steps(run, 1)


def skipping_run(folder: Path, method: str) -> tuple[RunDirectory, list[str]]:
    profile = cluster("in_process")
    changes = training(non_finite="skip", most_skipped=2)
    setup, run = new_run(experiment(method=method, training=changes), profile, folder)
    session = start(setup, profile, run)
    finish(session)
    return run, session.snapshot().events


@pytest.mark.parametrize(("method", "peers"), [("finetune", {0}), ("l4", {0, 1})])
def test_steps_within_the_budget_are_skipped_and_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, peers: set[int]
) -> None:
    """A peer that learns from predictions that are not finite skips the step for itself."""
    spoil(monkeypatch, {1, 3})
    run, events = skipping_run(tmp_path / "run", method)
    rows = pq.read_table(run.path / "steps" / "stage-0.epoch-1.parquet").to_pylist()
    skipped = {(row["step"], row["student"]) for row in rows if row["skipped"]}
    assert skipped == {(step, peer) for step in (1, 3) for peer in peers}
    assert all((row["loss"] is None) == bool(row["skipped"]) for row in rows)
    assert sum("is skipped: " in event for event in events) == len(skipped)


def test_beyond_the_budget_the_run_stops_and_keeps_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        spoil(patched, {0, 1, 2})
        run, message = failed_run(tmp_path / "run", "finetune", non_finite="skip", most_skipped=2)
    assert "step 2: " in message and "2 steps of this stage were skipped already (training.most_skipped)" in message
    assert [place.step for place in failed_steps(run, 0)] == [2]


def test_the_error_survives_a_pickle() -> None:
    error = pickle.loads(pickle.dumps(NonFiniteError("student 1: x", 1, 2, 3)))
    assert (str(error), error.student, error.stage, error.step) == ("student 1: x", 1, 2, 3)
