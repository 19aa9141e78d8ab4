"""The model's thread: requests share steps, leave early, wait in one queue, and none is left without a word."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from queue import Queue
from typing import Any

import pytest

from ray_l4.config.model import ModelConfig
from ray_l4.learner.batched_engine import BatchedEngine
from ray_l4.learner.engine import Decoding, Prompt
from ray_l4.learner.inspection import LoadedModel
from ray_l4.learner.rolling_batch import RollingBatch
from ray_l4.serve.generator import Generator, Job, NewTokens
from ray_l4.serve.limits import Limits
from ray_l4.serve.meter import Meter
from ray_l4.serve.problems import RequestError
from tests.learner import architectures as small
from tests.learner.test_learner_engine import END, requests, sharp
from tests.serve.serve_fixtures import LIMIT, wait_until

GREEDY = Decoding(banned=(END,), end=END)


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return LoadedModel(sharp(small.GPT2), None, ModelConfig(name="unused"))  # type: ignore[arg-type]


@pytest.fixture
def meter() -> Meter:
    return Meter()


@pytest.fixture
def generator(loaded: LoadedModel, meter: Meter) -> Iterator[Generator]:
    own = Generator(loaded, Limits(queue=40, batch=3), meter)
    yield own
    own.close(LIMIT)
    assert not own.is_alive()


class Gate:
    """A model that waits before every step until it is let go on."""

    def __init__(self, model: Any) -> None:
        self._open = threading.Event()
        self.entered = threading.Event()
        self._hook = model.register_forward_pre_hook(self._wait)

    def _wait(self, *given: object) -> None:
        self.entered.set()
        assert self._open.wait(LIMIT)

    def open(self) -> None:
        self._open.set()
        self._hook.remove()


def submitted(generator: Generator, prompts: list[Prompt], decoding: Decoding, **more: Any) -> list[Queue[NewTokens]]:
    told: list[Queue[NewTokens]] = [Queue() for _ in prompts]
    for prompt, queue in zip(prompts, told, strict=True):
        generator.submit(Job(prompt, decoding, queue.put, **more))
    return told


def whole(told: Queue[NewTokens]) -> tuple[list[int], str | None]:
    """All tokens of a job, and why it ended."""
    ids: list[int] = []
    while True:
        progress = told.get(timeout=LIMIT)
        ids += progress.ids
        if progress.failure is not None:
            raise progress.failure
        if progress.finish is not None:
            return ids, progress.finish


@pytest.mark.parametrize("every_token", [False, True])
def test_jobs_of_several_kinds_have_the_tokens_of_the_engine(
    generator: Generator, loaded: LoadedModel, meter: Meter, every_token: bool
) -> None:
    """More jobs than a batch takes, and more ways of choosing tokens than there are batches."""
    asked = requests([1, 5, 2, 13, 3, 8], [16, 3, 16, 0, 12, 1])
    ways = [GREEDY, Decoding(end=END), *(Decoding(4, temperature, end=END) for temperature in (0.5, 1.0, 2.0, 3.0))]
    told = [submitted(generator, asked, decoding, every_token=every_token) for decoding in ways]
    for decoding, own in zip(ways, told, strict=True):
        expected = BatchedEngine().extend(loaded.model, asked, decoding)
        found = [whole(queue) for queue in own]
        assert [ids for ids, _ in found] == expected
        kinds = ["length" if len(ids) == prompt.limit else "stop" for ids, prompt in zip(expected, asked, strict=True)]
        assert [finish for _, finish in found] == kinds
    assert meter.queue._value.get() == 0
    assert meter.rows._sum.get() == meter.tokens.labels("generated")._value.get() > 0


def test_every_token_is_told_as_it_comes(generator: Generator, loaded: LoadedModel) -> None:
    (told,) = submitted(generator, requests([4], 5), GREEDY, every_token=True)
    found = [told.get(timeout=LIMIT) for _ in range(5)]
    assert [len(progress.ids) for progress in found] == [1] * 5
    assert [progress.finish for progress in found] == [None] * 4 + ["length"]


def test_a_full_queue_refuses_more_and_a_dropped_job_makes_room(
    generator: Generator, loaded: LoadedModel, meter: Meter
) -> None:
    gate = Gate(loaded.model)
    first = submitted(generator, requests([4] * 3, 5), GREEDY)
    assert gate.entered.wait(LIMIT)
    jobs = [Job(requests([4], 5)[0], GREEDY, pytest.fail) for _ in range(40)]
    for job in jobs:
        generator.submit(job)
    assert meter.queue._value.get() == 40
    with pytest.raises(RequestError, match="40 requests wait already") as refused:
        generator.submit(jobs[0])
    assert refused.value.status == 503
    assert refused.value.headers["Retry-After"]
    for job in jobs:
        job.dropped = True
    gate.open()
    assert [whole(told)[1] for told in first] == ["length"] * 3
    wait_until(lambda: meter.queue._value.get() == 0)
    (last,) = submitted(generator, requests([4], 5), GREEDY)
    assert whole(last)[1] == "length"


def test_a_job_that_is_dropped_under_way_does_not_disturb_the_others(generator: Generator, loaded: LoadedModel) -> None:
    asked = requests([4, 9, 2], 12)
    gate = Gate(loaded.model)
    told: Queue[NewTokens] = Queue()
    dropped = Job(asked[1], GREEDY, told.put)
    others = submitted(generator, [asked[0], asked[2]], GREEDY)
    generator.submit(dropped)
    assert gate.entered.wait(LIMIT)
    dropped.dropped = True
    gate.open()
    expected = BatchedEngine().extend(loaded.model, asked, GREEDY)
    assert [whole(queue)[0] for queue in others] == [expected[0], expected[2]]
    assert told.empty()


def test_a_model_that_fails_is_told_to_all_under_way_and_the_thread_goes_on(
    generator: Generator, loaded: LoadedModel, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*given: object) -> None:
        raise RuntimeError("out of memory")

    for at_step in (False, True):
        count = 0

        def fail_at(*given: object, at_step: bool = at_step) -> None:
            nonlocal count
            count += 1
            if count > 3 * at_step:
                fail()

        hook = loaded.model.register_forward_pre_hook(fail_at)
        told = submitted(generator, requests([4, 9, 2], 12), GREEDY)
        for queue in told:
            with pytest.raises(RequestError, match="the model failed: RuntimeError: out of memory") as failed:
                whole(queue)
            assert failed.value.status == 500
        hook.remove()
        assert "out of memory" in caplog.text
        (well,) = submitted(generator, requests([4], 3), GREEDY)
        assert whole(well)[1] == "length"


@pytest.mark.parametrize("what", ["__init__", "room_for"])
def test_memory_that_is_refused_to_a_batch_is_told_and_the_thread_goes_on(
    generator: Generator, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    def refuse(*given: object) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patched:
        patched.setattr(RollingBatch, what, refuse)
        for queue in submitted(generator, requests([4, 9, 2], 12), GREEDY):
            with pytest.raises(RequestError, match="the model failed: RuntimeError: out of memory"):
                whole(queue)
    assert generator.is_alive()
    (well,) = submitted(generator, requests([4], 3), GREEDY)
    assert whole(well)[1] == "length"


@pytest.mark.parametrize("what", ["_admit", "_join", "_step"])
def test_a_thread_that_ends_tells_all_and_takes_no_more(
    loaded: LoadedModel, meter: Meter, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    generator = Generator(loaded, Limits(queue=40, batch=3), meter)
    gate, end = threading.Event(), getattr(generator, what)

    def fail(*given: object) -> None:
        assert gate.wait(LIMIT)
        if what == "_step":
            end(*given)
        raise SystemError("a defect")

    monkeypatch.setattr(generator, what, fail)
    told = submitted(generator, requests([4] * 7, 5), GREEDY)
    gate.set()
    for queue in told:
        with pytest.raises(RequestError, match="the model does not run any more") as failed:
            whole(queue)
        assert failed.value.status == 503
    assert not generator.is_alive()
    assert "a defect" in caplog.text
    with pytest.raises(RequestError, match="does not run any more"):
        submitted(generator, requests([4], 5), GREEDY)
    assert meter.queue._value.get() == 0


def test_closing_answers_what_waits(loaded: LoadedModel) -> None:
    generator = Generator(loaded, Limits(batch=1), Meter())
    told = submitted(generator, requests([4] * 5, 5), GREEDY)
    generator.close(LIMIT)
    assert not generator.is_alive()
    assert [whole(queue)[1] for queue in told] == ["length"] * 5
