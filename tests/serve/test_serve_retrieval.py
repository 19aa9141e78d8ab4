"""A service shows its model the examples that its run showed it, up to the stage that is served."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from ray_l4.errors import RunDirectoryError
from ray_l4.run import execute
from ray_l4.serve.asked import Sampling
from ray_l4.serve.limits import Limits
from ray_l4.serve.meter import Meter
from ray_l4.serve.served_model import Loader
from ray_l4.setup.setup import prepare
from ray_l4.store.run_directory import RunDirectory
from tests.run import run_fixtures as small


def test_a_question_becomes_the_prompt_of_the_run(tmp_path: Path) -> None:
    shape = {"layers": 1, "width": 32, "heads": 2, "positions": 256, "vocabulary": 400}
    config = small.quick("retrieve", model={"from_scratch": shape}, memory={"retrieve": 2}, training={"epochs": 1})
    execute.run(config, small.cluster("in_process"), tmp_path / "run", "ray-l4 run", Console(quiet=True))
    run = RunDirectory.open(tmp_path / "run")
    setup = prepare(run.experiment())
    loader = Loader(Limits(), Meter(), "cpu")
    prompts = []
    for stage in (0, 1):
        model = loader.load(run.checkpoint(stage, 1, 0))
        tests = setup.tests_of(stage)["mini.rest"]
        context, question = (tests.asked[name][0] for name in ("context", "question"))
        asked = model.question("mini.rest", context, question, Sampling())
        prompts.append(list(asked.prompt.ids))
        assert prompts[-1] == tests.prompts["ids"][0].as_py() and tests.shown[0]
        assert not asked.cut
        model.close()
    run.memory_examples("mini.woz").unlink()
    loader.load(run.checkpoint(0, 1, 0)).close()
    with pytest.raises(RunDirectoryError, match=r"mini\.woz\.parquet: is missing"):
        loader.load(run.checkpoint(1, 1, 0))
