"""A live service learns what its inbox holds: each segment once, whatever is killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from ray_l4.live.learner import LiveLearner, learning
from ray_l4.store.inbox.assignments import waiting
from ray_l4.store.inbox.inbox import Inbox
from ray_l4.store.promotion import decisions, served_stage
from ray_l4.store.run_directory import RunDirectory
from tests.live import live_fixtures as live

pytestmark = [pytest.mark.processes, pytest.mark.end_to_end]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return live.learned(tmp_path_factory.mktemp("live") / "run").path


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> RunDirectory:
    return RunDirectory.open(Path(shutil.copytree(finished, tmp_path / "run")))


def learned_examples(run: RunDirectory) -> list[str]:
    """The contexts of all examples of the inbox that stages of the stream have learned or are tested on."""
    folders = [item.path for item in run.experiment().stream if item.path is not None]
    files = [file for folder in folders for file in sorted(folder.glob("*.jsonl"))]
    return [json.loads(line)["context"] for file in files for line in file.read_text().splitlines()]


def settled(run: RunDirectory, stages: int) -> bool:
    return run.is_complete() and run.state().stages_done == stages and decisions(run)[-1].stage == stages - 1


def test_corrections_and_a_new_task_are_learned_judged_and_served(run: RunDirectory) -> None:
    said: list[str] = []
    learner = LiveLearner(run, live.PROFILE, live.LIVE, said.append)
    learner.look()
    assert said == ["stage 0 (mini.rest) is served from now on: it is the newest stage as the service begins"]
    Inbox(run.path).add("mini.rest", live.examples(3))
    learner.look()
    assert learner.learning is None, "too few"
    Inbox(run.path).add("mini.rest", live.examples(3, first=2))
    (run.path / "inbox" / "letters").mkdir()
    (run.path / "inbox" / "letters" / "task.yaml").write_text("metric: em\n")
    Inbox(run.path).add("letters", live.examples(10, first=100))
    learner.look()
    assert learner.learning is None, "more may follow"
    live.watch(learner, lambda: settled(run, 3))
    learner.stop()
    stages = [item.name for item in run.experiment().stream]
    assert sorted(stages) == ["letters", "mini.rest", "mini.rest"]
    assert sorted(learned_examples(run)) == sorted(f"case {n}" for n in [*range(5), *range(100, 110)])
    assert waiting(run.path, "mini.rest").examples == waiting(run.path, "letters").examples == 0
    assert [item.settings.training.epochs for item in run.experiment().stream] == [None, 2, 2]
    assert any("from the inbox" in line for line in said)
    judged = {decision.stage: decision for decision in decisions(run)}
    assert judged.keys() == {0, 1, 2}
    promoted = [stage for stage in judged if judged[stage].promoted]
    assert served_stage(run) == promoted[-1]
    assert sum(f"stage {stage} (" in line for line in said for stage in (1, 2)) == 2, said


@pytest.mark.parametrize("when", ["at once", "while it learns"])
def test_what_is_killed_goes_on_and_learns_everything_once(run: RunDirectory, when: str) -> None:
    said: list[str] = []
    Inbox(run.path).add("mini.rest", live.examples(6))
    first = LiveLearner(run, live.PROFILE, live.LIVE, said.append)
    live.watch(first, lambda: first.learning is not None)
    if when == "while it learns":
        live.watch(first, lambda: len(run.experiment().stream) == 2)
    pid = first.learning
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    live.watch(first, lambda: first.learning != pid)
    first.stop()  # as a service that is stopped; another one begins
    second = LiveLearner(run, live.PROFILE, live.LIVE, said.append)
    live.watch(second, lambda: settled(run, 2))
    second.stop()
    assert sorted(learned_examples(run)) == [f"case {number}" for number in range(6)]
    assert any("learning ended with code 137" in line for line in said)
    before = run.state().stages_done
    third = LiveLearner(run, live.PROFILE, live.LIVE, said.append)
    third.look()
    assert third.learning is None and run.state().stages_done == before, "nothing is left to learn"


def test_what_cannot_be_learned_is_set_aside_and_what_else_waits_is_learned(run: RunDirectory) -> None:
    said: list[str] = []
    Inbox(run.path).add("mini.rest", live.examples(6))
    learner = LiveLearner(run, live.PROFILE, live.LIVE, said.append)
    live.watch(learner, lambda: learner.learning is not None)
    learner.stop()
    (run.path / "data" / "inbox-1.mini.rest" / "train.jsonl").write_text("no JSON\n")
    Inbox(run.path).add("mini.rest", live.examples(5, first=50))
    live.watch(learner, lambda: settled(run, 2))
    learner.stop()
    assert sum("learning ended with code 3" in line and "train.jsonl" in line for line in said) == 1, said
    assert any("what waited of mini.rest is set aside" in line for line in said)
    assert sorted(learned_examples(run)) == [f"case {number}" for number in range(50, 55)]


def test_learning_that_fails_again_and_again_is_given_up_and_judging_goes_on(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    restarts = live.PROFILE.restarts.model_copy(update={"most": 1, "backoff": 0.1})
    learner = LiveLearner(run, live.PROFILE.model_copy(update={"restarts": restarts}), live.LIVE, said.append)
    monkeypatch.setattr("sys.executable", "/bin/false")
    Inbox(run.path).add("mini.rest", live.examples(6))
    live.watch(learner, lambda: any("given up" in line for line in said))
    assert sum("learning ended with code 1" in line for line in said) == 2
    assert learner.learning is None and served_stage(run) == 0
    (run.path / "promoted.json").unlink()
    learner.look()
    assert decisions(run), "it still judges"


def test_a_run_that_another_command_works_on_is_left_alone(run: RunDirectory) -> None:
    said: list[str] = []
    learner = LiveLearner(run, live.PROFILE, live.LIVE, said.append)
    with run.lock():
        learner.look()
        learner.look()
    assert sum("in use" in line for line in said) == 1, "it is told once"
    assert learner.learning is None and served_stage(run) == 0


def test_an_error_that_nobody_expected_does_not_end_the_thread(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is full as the command is started, for example."""
    said: list[str] = []
    learner = LiveLearner(run, live.PROFILE, live.LIVE, said.append)

    def fail(self: LiveLearner) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(LiveLearner, "look", fail)
    monkeypatch.setattr("ray_l4.live.learner._INTERVAL", 0.01)
    with learning(learner):
        deadline = time.monotonic() + live.LIMIT
        while not said:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        monkeypatch.setattr(LiveLearner, "look", lambda self: said.append("looked"))
        while said[-1] != "looked":
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert said[0] == "cannot learn now: no space left on device"
