"""``/v1/answers``: the answers of the run itself, with the student and stage they come from, whoever asks meanwhile."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from ray_l4.store.run_directory import RunDirectory
from tests.serve.serve_fixtures import EPOCHS, TASKS, Served, answered


def body_of(task: str, row: dict[str, Any], **more: object) -> dict[str, object]:
    return {"task": task, "context": row["context"], "question": row["question"], **more}


@pytest.mark.parametrize("task", TASKS)
def test_answers_are_those_of_the_run(run: RunDirectory, served: Served, task: str) -> None:
    student = served.model.checkpoint.student
    rows = answered(run, 1, student, task)
    found = [served.post("/v1/answers", body_of(task, row)).json() for row in rows]
    assert [each["answer"] for each in found] == [row["prediction"] for row in rows]
    assert len({each["answer"] for each in found}) > 1, "a model that says the same to all tests nothing"
    place = {"task": task, "model": run.path.name, "stage": 1, "epoch": EPOCHS, "student": student}
    assert all(place.items() <= each.items() for each in found)
    assert all(each["usage"]["total_tokens"] == sum(list(each["usage"].values())[:2]) for each in found)
    assert not any(each["context_cut"] for each in found)


def test_answers_do_not_depend_on_who_else_asks(run: RunDirectory, served: Served) -> None:
    """All questions at once, of both tasks, with and without sampling, share the steps of the model."""
    student = served.model.checkpoint.student
    asked = [(task, row) for task in TASKS for row in answered(run, 1, student, task)] * 3
    sampled = [body_of(task, row, temperature=0.8, seed=n) for n, (task, row) in enumerate(asked)]

    def answer(body: dict[str, object]) -> str:
        text: str = served.post("/v1/answers", body).json()["answer"]
        return text

    alone = [answer(body) for body in sampled]
    with ThreadPoolExecutor(24) as many:
        greedy = list(many.map(answer, [body_of(task, row) for task, row in asked]))
        assert list(many.map(answer, sampled)) == alone
    assert greedy == [row["prediction"] for _, row in asked]
    assert alone != greedy
    samples = served.service.meter.rows.collect()[0].samples
    rows = {sample.labels["le"]: sample.value for sample in samples if sample.name.endswith("_bucket")}
    assert rows["1.0"] < rows["+Inf"], "some steps were shared"


def test_a_shorter_answer_is_the_beginning_of_the_usual_one(run: RunDirectory, served: Served) -> None:
    row = max(answered(run, 1, served.model.checkpoint.student, "mini.woz"), key=lambda row: len(row["prediction"]))
    found = served.post("/v1/answers", body_of("mini.woz", row, max_tokens=2)).json()
    assert found["usage"]["completion_tokens"] == 2
    assert found["finish_reason"] == "length"
    assert row["prediction"].startswith(found["answer"])


def test_a_long_context_is_cut_as_in_the_run_and_the_answer_says_so(run: RunDirectory, served: Served) -> None:
    row = answered(run, 1, served.model.checkpoint.student, "mini.woz")[0]
    found = served.post(
        "/v1/answers", body_of("mini.woz", row | {"context": row["context"] + " and more" * 200})
    ).json()
    assert found["context_cut"]
    assert found["usage"]["prompt_tokens"] < 96


@pytest.mark.parametrize("task", TASKS)
def test_a_task_that_always_asks_the_same_needs_no_question(
    run: RunDirectory, served: Served, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    row = answered(run, 1, served.model.checkpoint.student, task)[1]
    body = {"task": task, "context": row["context"]}
    assert served.post("/v1/answers", body).json()["answer"] == row["prediction"]
    varied = replace(served.model.habit(task), question=None)
    monkeypatch.setitem(served.model._habits, task, varied)
    refused = served.post("/v1/answers", body)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "question"
    assert served.post("/v1/answers", body_of(task, row)).json()["answer"] == row["prediction"]


def test_samples_follow_their_seed_and_differ_without_one(run: RunDirectory, served: Served) -> None:
    row = answered(run, 1, 0, "mini.woz")[0]

    def sample(**more: object) -> str:
        text: str = served.post("/v1/answers", body_of("mini.woz", row, temperature=1.5, **more)).json()["answer"]
        return text

    assert sample(seed=3) == sample(seed=3)
    assert sample(seed=-3) == sample(seed=-3)
    assert len({sample() for _ in range(6)}) > 1
    greedy = served.post("/v1/answers", body_of("mini.woz", row)).json()["answer"]
    assert sample(top_p=1e-9, seed=5) == greedy, "a nucleus of one token is the most likely one"
