"""Peers scored together after a run has finished: the same scores as if they had been asked for at the start."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from transformers import GPT2Config

from ray_l4.errors import ConfigError, RunDirectoryError
from ray_l4.report.finished_run import FinishedRun
from ray_l4.report.markdown import run_report
from ray_l4.run.session import start
from ray_l4.run.together_later import add_together, missing_together
from ray_l4.setup.setup import prepare
from ray_l4.store.atomic import write_text
from ray_l4.store.run_directory import TOGETHER, Cell, RunDirectory
from tests.learner import adapter_fixtures as adapted
from tests.learner import learner_fixtures
from tests.run import run_fixtures as small
from tests.run.test_run_together import IN_PROCESS, of_peers

EVERY = {"when": "epoch"}


@pytest.fixture(scope="module")
def with_row(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """Scored together from the start."""
    config = of_peers(2, evaluation=EVERY)
    return small.complete_run(config, IN_PROCESS, tmp_path_factory.mktemp("later") / "with")[0]


@pytest.fixture
def run(with_row: RunDirectory, tmp_path: Path) -> RunDirectory:
    """The same run as it is without that: finished, with a report."""
    found = RunDirectory(shutil.copytree(with_row.path, tmp_path / "run"))
    for folder in ("scores", "predictions"):
        for path in (found.path / folder).glob("*.together.*"):
            path.unlink()
    config = found.path / "config.yaml"
    write_text(config, config.read_text().replace("together: true", "together: false"))
    (found.path / "summary.json").unlink()
    small.finish(start(prepare(found.experiment()), IN_PROCESS, found))
    write_text(found.path / "report.md", run_report(FinishedRun.open(found.path)))
    assert "together" not in found.summary()
    return found


def test_a_finished_run_gets_the_row_that_it_would_have_had(run: RunDirectory, with_row: RunDirectory) -> None:
    before, scores = run.summary(), small.scores(run)
    state = run.state()
    said: list[str] = []
    added = add_together(run, IN_PROCESS, said.append)
    assert len(added) == 2 * 2 * 2 and all(cell.student == TOGETHER for cell in added)
    small.assert_equal(run, with_row)
    after = run.summary()
    assert {key: after[key] for key in before} == before, "all that was known before, the time of the run included"
    assert after["together"] == with_row.summary()["together"]
    assert run.state() == state
    assert scores.items() <= small.scores(run).items()
    assert run.experiment().evaluation.together
    assert "## Together" in (run.path / "report.md").read_text()
    assert not (run.path / "report.html").exists(), "a report that was not there is not written"
    assert said == []
    assert add_together(run, IN_PROCESS, said.append) == [], "there is nothing left to do"


def test_a_call_that_was_cut_off_is_continued(run: RunDirectory, with_row: RunDirectory) -> None:
    """It leaves the result as it was; the next one takes the missing scores, also those of a half-scored row."""
    for cell in (Cell(0, 1, TOGETHER, "mini.rest"), Cell(0, 2, TOGETHER, "mini.rest")):
        shutil.copy(with_row.path / "scores" / f"{cell.name}.json", run.path / "scores")
        shutil.copy(with_row.path / "predictions" / f"{cell.name}.parquet", run.path / "predictions")
    assert "together" not in run.summary()
    assert list(missing_together(run)) == [(0, 1), (0, 2), (1, 1), (1, 2)]
    assert len(add_together(run, IN_PROCESS, print)) == 8 - 2
    small.assert_equal(run, with_row)


def test_rows_whose_checkpoints_are_not_kept_stay_empty(run: RunDirectory) -> None:
    shutil.rmtree(run.checkpoint(0, 2, 1))
    said: list[str] = []
    added = add_together(run, IN_PROCESS, said.append)
    assert {(cell.stage, cell.epoch) for cell in added} == {(0, 1), (1, 1), (1, 2)}
    assert len(said) == 1 and said[0].startswith("stage 0 (mini.rest), epoch 2: not scored together")
    assert run.summary()["together"]["score_matrix"][0] == [None, None]


def test_without_any_checkpoint_nothing_is_written(run: RunDirectory) -> None:
    shutil.rmtree(run.path / "checkpoints")
    with pytest.raises(RunDirectoryError, match="does not hold the checkpoints of all students"):
        add_together(run, IN_PROCESS, lambda line: None)
    assert not run.experiment().evaluation.together and "together" not in run.summary()


def test_it_can_go_on_afterwards(run: RunDirectory, with_row: RunDirectory) -> None:
    """A resumed run finds the setting that it did not begin with, and nothing wrong with it."""
    add_together(run, IN_PROCESS, print)
    (run.path / "summary.json").unlink()
    cell = Cell(1, 2, TOGETHER, "mini.woz")
    (run.path / "scores" / f"{cell.name}.json").unlink()
    small.finish(start(prepare(run.experiment()), IN_PROCESS, run))
    small.assert_equal(run, with_row)


def test_adapters_on_two_models(tmp_path: Path) -> None:
    """Their checkpoints hold neither the pretrained weights nor the configuration of the whole model."""
    for name, width in (("base", 32), ("wide", 48)):
        adapted.save_base(tmp_path / name, GPT2Config(n_embd=width, n_layer=1, n_head=2, n_positions=512))
    for task in adapted.TASKS:
        (tmp_path / task).mkdir()
        for split in ("train", "test"):
            lines = [json.dumps(row) for row in learner_fixtures.examples(task, 8).to_pylist()]
            (tmp_path / task / f"{split}.jsonl").write_text("\n".join(lines))

    def finished(name: str, together: bool) -> tuple[RunDirectory, dict[str, Any]]:
        config = of_peers(
            2,
            together,
            stream=[{"name": task, "path": tmp_path / task, "metric": "em"} for task in adapted.TASKS],
            model={"name": str(tmp_path / "base"), "from_scratch": None, "lora": {"rank": 2}},
            replay={"max_length": 24},
            peers={"each": [{}, {"model": {"name": str(tmp_path / "wide")}}]},
        )
        return small.complete_run(config, IN_PROCESS, tmp_path / name)

    (expected, _), (run, _) = finished("with", True), finished("without", False)
    assert (run.checkpoint(1, 2, 1) / "adapter_config.json").is_file()
    add_together(run, IN_PROCESS, print)
    assert len(small.scores(run)) == 3 * 2 * 2
    small.assert_equal(run, expected)
    for cell in (cell for cell in run.scores() if cell.student == TOGETHER):
        mine, theirs = (pq.read_table(own.path / "predictions" / f"{cell.name}.parquet") for own in (run, expected))
        assert mine.equals(theirs)


def test_a_run_of_one_student_is_refused(tmp_path: Path) -> None:
    run, _ = small.complete_run(small.quick("finetune"), IN_PROCESS, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"has a single student; evaluation\.together needs two or more"):
        add_together(run, IN_PROCESS, print)
