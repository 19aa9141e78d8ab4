"""Feedback, new tasks and the overview over HTTP: stored before it is acknowledged, refused in plain words."""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from httpx import Response

from ray_l4.config.loading import dump_yaml
from ray_l4.serve import feedback
from ray_l4.serve.app import create_app
from ray_l4.serve.extras import routers
from ray_l4.serve.feedback import RunSide
from ray_l4.serve.feedback_routes import MOST_CHARACTERS
from ray_l4.serve.limits import Limits
from ray_l4.serve.meter import Meter
from ray_l4.serve.overview_types import Overview
from ray_l4.serve.service import Service
from ray_l4.store.atomic import write_text
from ray_l4.store.inbox.example import Example
from ray_l4.store.inbox.inbox import Inbox, holding
from ray_l4.store.inbox.places import inbox_of, shelf_folder
from ray_l4.store.inbox.segments import read_segment, segments_in
from ray_l4.store.lock import locked
from ray_l4.store.run_directory import RunDirectory
from tests.report.finished_runs import TASKS, write_run

TASK = TASKS[0]
GOOD = {"task": TASK, "context": "c", "question": "q", "answer": "yes", "given": "no"}


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(write_run(tmp_path / "run"))


@pytest.fixture
def client(run: RunDirectory) -> Iterator[TestClient]:
    with client_of(run) as client:
        yield client


def client_of(run: RunDirectory | None, **limits: Any) -> TestClient:
    """A client of a service that has no model."""
    service = Service(Limits(**limits), Meter(), run)
    return TestClient(create_app(service, (), routers(run)), base_url="http://127.0.0.1")


def message(response: Response, status: int) -> str:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return str(error["message"])


def stored(run: RunDirectory, task: str = TASK) -> list[Example]:
    folder = shelf_folder(run.path, task, "segments")
    return [one for segment in segments_in(folder) for one in read_segment(folder, segment)]


def test_feedback_is_on_disk_when_it_is_acknowledged(run: RunDirectory, client: TestClient) -> None:
    answer = client.post("/v1/feedback", json=GOOD).json()
    (found,) = stored(run)
    assert answer == {"id": found.id, "task": TASK, "duplicate": False, "waiting": 1}
    assert (found.context, found.question, found.answers) == ("c", "q", ("yes",))
    assert (found.given, found.source) == ("no", "feedback")
    again = client.post("/v1/feedback", json=GOOD | {"answer": " yes ", "given": None}).json()
    assert again == answer | {"duplicate": True}
    assert client.post("/v1/feedback", json=GOOD | {"answer": "other"}).json()["waiting"] == 2
    with client_of(run) as later:
        assert later.post("/v1/feedback", json=GOOD).json()["duplicate"]


@pytest.mark.parametrize(
    ("change", "status", "why"),
    [
        ({"task": "woz"}, 404, "there is no task 'woz'. Did you mean 'woz.en'?"),
        ({"task": "../../etc"}, 404, "there is no task '../../etc'. Known:"),
        ({"task": None}, 400, "task: Input should be a valid string"),
        ({"answer": 3}, 400, "answer: Input should be a valid string"),
        ({"answer": ["a"]}, 400, "answer: Input should be a valid string"),
        ({"answer": " "}, 400, "the answer is blank"),
        ({"context": "", "question": ""}, 400, "context and question are both blank"),
        ({"question": None}, 400, "question is missing; the examples of woz.en have questions of their own"),
        ({"answer": "\ud800"}, 400, "surrogates not allowed"),
        ({"context": "x" * (MOST_CHARACTERS + 1)}, 400, f"at most {MOST_CHARACTERS} characters"),
        ({"anser": "x"}, 400, "anser: Extra inputs are not permitted"),
        ({"context": "x" * 2**20}, 413, "more than 1,048,576 bytes"),
    ],
)
def test_bad_feedback_is_refused_and_nothing_is_stored(
    run: RunDirectory, client: TestClient, change: dict[str, Any], status: int, why: str
) -> None:
    body = (GOOD | change) if None not in change.values() else {k: v for k, v in GOOD.items() if k not in change}
    if change.get("task", "") is None:
        body["task"] = None
    response = client.post("/v1/feedback", content=json.dumps(body))
    assert why in message(response, status)
    assert not inbox_of(run.path).exists()


@pytest.mark.parametrize(("content", "why"), [(b"", "it is empty"), (b"{", "not JSON"), (b"[]", "expected an object")])
def test_what_is_no_object_is_refused(client: TestClient, content: bytes, why: str) -> None:
    for path in ("/v1/feedback", "/v1/tasks"):
        assert why in message(client.post(path, content=content), 400)


def test_a_full_disk_is_told_and_what_was_acknowledged_stays(
    run: RunDirectory, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.post("/v1/feedback", json=GOOD)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        for path, body in (("/v1/feedback", GOOD | {"context": "d"}), ("/v1/tasks", {"task": "new"})):
            response = client.post(path, json=body)
            assert "the disk is full" in message(response, 503)
            assert "Nothing was stored; send it again." in message(response, 503)
            assert response.headers["retry-after"] == "5"
    assert len(stored(run)) == 1
    assert client.post("/v1/feedback", json=GOOD | {"context": "d"}).json()["waiting"] == 2


def test_an_inbox_that_another_process_holds_is_told(
    run: RunDirectory, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray_l4.store.inbox.inbox.PATIENCE", 0.1)
    with holding(run.path), locked(run.path):  # a command may be at work on the run itself
        assert "in use by process" in message(client.post("/v1/feedback", json=GOOD), 503)
    with locked(run.path):
        assert client.post("/v1/feedback", json=GOOD).status_code == 200


def test_a_new_task_is_begun_and_takes_examples(run: RunDirectory, client: TestClient) -> None:
    wanted = {"task": "opening hours", "metric": "nf1", "question": "When is it open?"}
    assert client.post("/v1/tasks", json=wanted).json() == wanted | {"created": True}
    again = client.post("/v1/tasks", json=wanted)
    assert (again.status_code, again.json()) == (200, wanted | {"created": False})
    answer = client.post("/v1/feedback", json={"task": "opening hours", "context": "the shop", "answer": "9 to 5"})
    assert answer.json()["waiting"] == 1
    assert stored(run, "opening hours")[0].question == "When is it open?"
    new = client.get("/v1/overview").json()["tasks"][-1]
    assert (new["name"], new["is_new"], new["waiting"], new["metric"]) == ("opening hours", True, 1, "nf1")


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ({"task": ".."}, "begins with a dot"),
        ({"task": "a|b"}, "cannot contain '|'"),
        ({"task": TASK}, "the run has a task 'woz.en' already"),
        ({"task": "new", "metric": "rogue"}, "unknown metric 'rogue'"),
        ({"task": "new", "path": "/etc"}, "path: Extra inputs"),
        ({}, "task: Field required"),
    ],
)
def test_an_unfit_task_is_refused(run: RunDirectory, client: TestClient, body: dict[str, str], why: str) -> None:
    assert why in message(client.post("/v1/tasks", json=body), 400)
    assert not inbox_of(run.path).exists()


def test_the_overview_is_that_of_the_run_and_of_the_service(run: RunDirectory, client: TestClient) -> None:
    found = client.get("/v1/overview").json()
    assert found.pop("serving") is None  # there is no model here
    read = Overview.model_validate(found)
    assert [task.name for task in read.tasks] == [*TASKS]
    assert read.served is not None
    assert read.served.stage == 2


def test_files_are_read_and_problems_shown_while_the_page_is_watched(
    run: RunDirectory, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feedback, "FRESH", 0.0)
    monkeypatch.setattr(feedback, "LOOK_EVERY", 0.0)
    folder = inbox_of(run.path) / TASK
    folder.mkdir(parents=True)
    (folder / "a.jsonl").write_text('{"context": "c", "question": "q", "answer": "yes"}\n')
    (folder / "b.txt").write_text("hello")
    os.utime(folder / "a.jsonl", (time.time() - 60,) * 2)
    client.get("/v1/overview")  # looks at the files afterwards
    found = client.get("/v1/overview").json()
    assert found["tasks"][0]["waiting"] == 1
    assert ["b.txt" in problem for problem in found["problems"]] == [True]
    assert client.post("/v1/feedback", json={k: v for k, v in GOOD.items() if k != "given"}).json()["duplicate"]


def test_a_damaged_run_is_told_and_heals(
    run: RunDirectory, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feedback, "FRESH", 0.0)
    state = run.path / "state.json"
    whole = state.read_bytes()
    state.write_bytes(b"{")
    assert "state.json" in message(client.get("/v1/overview"), 503)
    state.write_bytes(whole)
    assert client.get("/v1/overview").status_code == 200


def test_a_checkpoint_of_no_run_has_the_page_and_takes_no_feedback() -> None:
    with client_of(None) as client:
        assert client.get("/").status_code == 200
        for response in (client.post("/v1/feedback", json=GOOD), client.get("/v1/overview")):
            assert "there is nothing at" in message(response, 404)


def test_many_clients_share_segments_and_lose_nothing(run: RunDirectory, client: TestClient) -> None:
    answers: list[dict[str, Any]] = []

    def send(first: int) -> None:
        for number in range(first, first + 8):
            answers.append(client.post("/v1/feedback", json=GOOD | {"context": f"c{number // 2}"}).json())

    threads = [threading.Thread(target=send, args=(first,)) for first in range(0, 64, 8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(not answer["duplicate"] for answer in answers) == 32
    assert {answer["id"] for answer in answers} == {one.id for one in stored(run)}
    assert len(stored(run)) == 32


def test_segments_are_not_read_again_for_every_request(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    box = Inbox(run.path)
    read: list[str] = []

    def counted(folder: Path, segment: Any) -> Any:
        read.append(segment.name)
        return read_segment(folder, segment)

    monkeypatch.setattr("ray_l4.store.inbox.segments.read_segment", counted)
    with client_of(run) as client:
        for number in range(5):
            client.post("/v1/feedback", json=GOOD | {"context": f"c{number}"})
        assert read == []
        box.add(TASK, [Example("elsewhere", "q", ("yes",))])
        assert len(read) == 5  # by the other writer, once
        client.post("/v1/feedback", json=GOOD)
        client.post("/v1/feedback", json=GOOD | {"context": "last"})
        assert len(read) == 6


def test_a_run_that_is_extended_takes_feedback_of_its_new_task(run: RunDirectory) -> None:
    side = RunSide(run)
    assert side.task("another") is None
    experiment = run.experiment()
    longer = [*experiment.stream, experiment.stream[0].model_copy(update={"name": "another"})]
    write_text(run.path / "config.yaml", dump_yaml(experiment.model_copy(update={"stream": longer})))
    found = side.task("another")
    assert found is not None
    assert not found.is_new
