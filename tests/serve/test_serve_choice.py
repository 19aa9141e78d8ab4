"""Which checkpoint is served, and what it has learned."""

from __future__ import annotations

from pathlib import Path

import pytest

from ray_l4.config.experiment import ExperimentConfig
from ray_l4.errors import ConfigError, ModelError, RayL4Error, RunDirectoryError
from ray_l4.serve.choice import learned_tasks, served_checkpoint
from ray_l4.serve.limits import Limits
from ray_l4.serve.meter import Meter
from ray_l4.serve.one_process import open_service
from ray_l4.serve.opening import ServeOptions
from ray_l4.serve.served_model import Loader
from ray_l4.store.promotion import decide
from ray_l4.store.run_directory import RunDirectory
from ray_l4.store.sealed import write_record
from tests.serve.serve_fixtures import EPOCHS, TASKS, copy_of, serving


@pytest.fixture
def own(run: RunDirectory, tmp_path: Path) -> RunDirectory:
    return copy_of(run, tmp_path / "own")


def score(run: RunDirectory, student: int, *values: float) -> None:
    """Give a student these scores after the last stage."""
    for task, value in zip(TASKS, values, strict=True):
        path = run.path / "scores" / f"stage-1.epoch-{EPOCHS}.student-{student}.{task}.json"
        (cell,) = (cell for found, cell in run.score_files() if found == path)
        record = run.score(cell)
        write_record(path, record | {"values": dict.fromkeys(record["values"], value)})


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [((10, 20), (20, 11), 1), ((20, 20), (10, 20), 0), ((10, 20), (20, 10), 0)],
    ids=["the second is better", "the first is better", "they are equal"],
)
def test_the_student_with_the_best_mean_is_served(
    own: RunDirectory, first: tuple[float, ...], second: tuple[float, ...], expected: int
) -> None:
    score(own, 0, *first)
    score(own, 1, *second)
    found = served_checkpoint(own)
    assert (found.stage, found.epoch, found.student) == (1, EPOCHS, expected)


def test_a_lost_student_is_not_served(own: RunDirectory) -> None:
    score(own, 0, 10, 10)
    score(own, 1, 90, 90)
    own.save_state(own.state().model_copy(update={"lost_students": {1: "its machine is gone"}}))
    assert served_checkpoint(own).student == 0


def test_a_promoted_stage_is_served_with_the_tasks_of_then(own: RunDirectory) -> None:
    decide(own, 0, promoted=True, by="hand", why="a test")
    assert served_checkpoint(own).stage == 0
    with serving(own.path) as served:
        assert served.get("/healthz").json()["tasks"] == [TASKS[0]]


@pytest.mark.parametrize(
    ("method", "expected"),
    [("l4", ["a", "ab", "abc"]), ("single-qa", ["a", "b", "c"]), ("multi-qa-lm", ["abc"])],
)
def test_what_a_checkpoint_has_learned_follows_from_its_method(method: str, expected: list[str]) -> None:
    experiment = ExperimentConfig.model_validate(
        {"method": method, "stream": [{"name": name, "path": "."} for name in "abc"], "model": {"name": "m"}}
    )
    assert ["".join(learned_tasks(experiment, stage)) for stage in range(len(expected))] == expected


def options(folder: Path, **changes: object) -> ServeOptions:
    return ServeOptions(**{"folder": folder, "host": "127.0.0.1", "port": 0, "limits": {}, **changes})


def test_a_checkpoint_is_served_by_itself(run: RunDirectory) -> None:
    """One of a run keeps its place; a copy elsewhere has none, and all tasks of its tokeniser."""
    with serving(run.checkpoint(0, EPOCHS, 0)) as served:
        found = served.get("/healthz").json()
        assert found == found | {"model": run.path.name, "stage": 0, "student": 0, "tasks": [TASKS[0]]}


def test_a_copy_of_a_checkpoint_has_no_place(run: RunDirectory, tmp_path: Path) -> None:
    folder = copy_of(RunDirectory(run.checkpoint(1, EPOCHS, 0)), tmp_path / "best").path
    with serving(folder) as served:
        found = served.get("/healthz").json()
        assert found == found | {"model": "best", "stage": None, "student": None, "tasks": list(TASKS)}
        answer = served.post("/v1/completions", {"model": "best/mini.woz", "prompt": "cheap"}).json()
        assert answer["system_fingerprint"] == "checkpoint"


def test_what_cannot_be_served_is_refused(own: RunDirectory, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "config.json").write_text("{}")
    cases: list[tuple[ServeOptions, type[RayL4Error], str]] = [
        (options(tmp_path / "empty"), RunDirectoryError, "not a run directory"),
        (options(tmp_path / "none"), RunDirectoryError, "not a run directory"),
        (options(tmp_path / "foreign"), ModelError, "holds no task tokens"),
        (options(own.checkpoint(1, EPOCHS, 0), follow=True), ConfigError, "which does not change"),
    ]
    for wished, kind, words in cases:
        with pytest.raises(kind, match=words):
            open_service(wished)
    own.save_state(own.state().model_copy(update={"stages_done": 0}))
    with pytest.raises(RunDirectoryError, match="no stage of this run has finished"):
        open_service(options(own.path))


def test_a_checkpoint_of_samples_answers_greedily(own: RunDirectory) -> None:
    config = own.path / "config.yaml"
    config.write_text(config.read_text().replace("top_k: 1\n", "top_k: 20\n"))
    assert own.experiment().evaluation.top_k == 20
    model = Loader(Limits(), Meter()).load(own.checkpoint(1, EPOCHS, 0))
    try:
        assert model._found.experiment.evaluation.top_k == 1
    finally:
        model.close(5)
