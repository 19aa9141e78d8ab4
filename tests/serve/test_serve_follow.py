"""A run that goes on: what it promotes is swapped in, and no request fails or mixes two models."""

from __future__ import annotations

import json
import os
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from ray_l4.serve.choice import served_checkpoint
from ray_l4.store.promotion import FILE, decide
from ray_l4.store.run_directory import RunDirectory
from tests.serve.serve_fixtures import LIMIT, TASKS, answered, copy_of, serving, wait_until

INTERVAL = 0.05


def state_after(run: RunDirectory, stages: int) -> None:
    """Let a run be one that has finished so many stages."""
    run.save_state(run.state().model_copy(update={"stages_done": stages}))


def promote(run: RunDirectory, stage: int) -> None:
    decide(run, stage, promoted=True, by="hand", why="a test")


def stage_of(address: str) -> Any:
    return httpx.get(f"{address}/healthz", timeout=LIMIT).json().get("stage")


@pytest.fixture
def own(run: RunDirectory, tmp_path: Path) -> RunDirectory:
    """A copy of the run."""
    return copy_of(run, tmp_path / "own")


def test_a_service_begins_when_the_first_stage_has_finished(own: RunDirectory) -> None:
    state_after(own, 0)
    with serving(own.path, interval=INTERVAL) as served:
        waiting = served.get("/healthz")
        assert waiting.status_code == 503
        assert waiting.headers["retry-after"]
        refused = served.post("/v1/answers", {"task": "mini.woz", "context": "a"})
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "no_model_yet"
        state_after(own, 1)
        wait_until(lambda: served.get("/healthz").status_code == 200)
        assert served.get("/healthz").json()["tasks"] == [TASKS[0]]
        unknown = served.post("/v1/answers", {"task": TASKS[1], "context": "a"})
        assert unknown.status_code == 404, "the task has not been learned by then"
        state_after(own, 2)
        wait_until(lambda: stage_of(served.address) == 1)
        assert served.get("/healthz").json()["tasks"] == list(TASKS)


def test_swaps_under_load_lose_no_request_and_mix_no_models(own: RunDirectory) -> None:
    """Half the clients stream. Each answer is that of the student and stage which it names, from end to end."""
    promote(own, 0)
    students = {}
    for stage in (0, 1):
        promote(own, stage)
        students[stage] = served_checkpoint(own).student
    promote(own, 0)
    task = TASKS[0]
    expected = {
        f"stage-{stage}.student-{student}": {row["context"]: row for row in answered(own, stage, student, task)}
        for stage, student in students.items()
    }
    contexts = list(next(iter(expected.values())))
    predictions = [[rows[context]["prediction"] for context in contexts] for rows in expected.values()]
    assert predictions[0] != predictions[1], "two models that say the same cannot be told apart"
    ended, seen = threading.Event(), Counter[str]()

    def ask(client: httpx.Client, address: str, context: str) -> tuple[str, str]:
        body = {"task": task, "context": context}
        found = client.post(f"{address}/v1/answers", json=body)
        assert found.status_code == 200, found.text
        place = found.json()
        return f"stage-{place['stage']}.student-{place['student']}", place["answer"]

    def stream(client: httpx.Client, address: str, context: str) -> tuple[str, str]:
        body = {"model": f"own/{task}", "prompt": context, "stream": True}
        with client.stream("POST", f"{address}/v1/completions", json=body) as found:
            assert found.status_code == 200
            lines = [line.removeprefix("data: ") for line in found.iter_lines() if line]
        assert lines[-1] == "[DONE]"
        chunks = [json.loads(line) for line in lines[:-1]]
        assert len({chunk["system_fingerprint"] for chunk in chunks}) == 1
        return chunks[0]["system_fingerprint"], "".join(chunk["choices"][0]["text"] for chunk in chunks)

    def keep_asking(number: int, address: str) -> None:
        with httpx.Client(timeout=LIMIT) as client:
            while not ended.is_set():
                for context in contexts:
                    name, answer = (stream if number % 2 else ask)(client, address, context)
                    assert answer == expected[name][context]["prediction"]
                    seen[name] += 1

    with serving(own.path, interval=INTERVAL) as served, ThreadPoolExecutor(4) as clients:
        wait_until(lambda: served.service.current is not None)
        first = served.model
        asking = [clients.submit(keep_asking, number, served.address) for number in range(4)]
        try:
            for stage in (1, 0, 1):
                promote(own, stage)
                wait_until(lambda stage=stage: served.model.checkpoint.stage == stage)
                before = seen.copy()
                name = f"stage-{stage}.student-{students[stage]}"
                wait_until(lambda name=name, before=before: seen[name] > before[name] + 4)
        finally:
            ended.set()
        assert [each.exception() for each in asking] == [None] * 4
        assert served.service.meter.swaps._value.get() == 3
        wait_until(lambda: not first.generator.is_alive())
    assert set(seen) == set(expected)


def test_a_damaged_checkpoint_is_not_served_until_it_is_whole(
    own: RunDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    promote(own, 1)
    student = served_checkpoint(own).student
    promote(own, 0)
    weights = own.checkpoint(1, 3, student) / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with serving(own.path, interval=INTERVAL) as served:
        wait_until(lambda: served.service.current is not None)
        promote(own, 1)
        failed = served.service.meter.failed_loads._value
        wait_until(lambda: failed.get() >= 2)
        assert stage_of(served.address) == 0
        assert served.post("/v1/answers", {"task": TASKS[0], "context": "a"}).status_code == 200
        assert "model.safetensors" in caplog.text
        weights.write_bytes(whole)
        wait_until(lambda: stage_of(served.address) == 1)
        assert served.service.meter.swaps._value.get() == 1


@pytest.mark.parametrize("name", [FILE, "state.json"])
def test_a_damaged_record_leaves_the_model_as_it_is(own: RunDirectory, name: str) -> None:
    promote(own, 0)
    whole = (own.path / name).read_bytes()
    with serving(own.path, interval=INTERVAL) as served:
        wait_until(lambda: served.service.current is not None)
        (own.path / name).write_bytes(whole[:20])
        wait_until(lambda: served.service.meter.failed_loads._value.get() >= 1)
        assert stage_of(served.address) == 0
        (own.path / name).write_bytes(whole)
        promote(own, 1)
        wait_until(lambda: stage_of(served.address) == 1)


def test_the_better_student_is_swapped_in_when_all_are_scored(own: RunDirectory) -> None:
    """A stage is committed before its last scores are there."""
    student = served_checkpoint(own).student
    assert student == 1, "otherwise the first would be served before and after"
    missing = own.path / "scores" / f"stage-1.epoch-3.student-0.{TASKS[1]}.json"
    kept = missing.read_bytes()
    missing.unlink()
    with serving(own.path, interval=INTERVAL) as served:
        wait_until(lambda: served.service.current is not None)
        assert served.model.checkpoint.student == 0
        missing.write_bytes(kept)
        wait_until(lambda: served.model.checkpoint.student == student)


def test_looking_at_a_run_that_stands_still_reads_nothing(own: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray_l4.serve import follow

    with serving(own.path, interval=INTERVAL) as served:
        wait_until(lambda: served.service.current is not None)
        looks: list[str] = []
        monkeypatch.setattr(follow, "served_checkpoint", lambda run: looks.append("read"))
        stamps = follow._stamp
        monkeypatch.setattr(follow, "_stamp", lambda path: (looks.append("stamp"), stamps(path))[1])
        wait_until(lambda: looks.count("stamp") > 9)
        assert "read" not in looks
        os.utime(own.path / "state.json")
        wait_until(lambda: "read" in looks)
