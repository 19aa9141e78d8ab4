"""The load generator's referee: percentiles, answers of the wrong model, examples lost or double, and its account."""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.live_load import __main__ as command
from analysis.live_load import account, on_disk, processes, referee
from analysis.live_load.account import Account
from analysis.live_load.asking import CUT, LATE, OK, REFUSED, Asked, Client, Tried, persist
from analysis.live_load.questions import Lesson, fresh, questions_of
from analysis.live_load.watching import Sample
from ray_l4.config.cluster import ClusterConfig
from ray_l4.config.experiment import ExperimentConfig
from ray_l4.store.inbox.assignments import take
from ray_l4.store.inbox.example import Example
from ray_l4.store.inbox.inbox import Inbox
from ray_l4.store.promotion import decide
from ray_l4.store.run_directory import RunDirectory, RunState
from ray_l4.tasks.inbox_tasks import stage_task


def asked(due: float, stage: int | None, answer: str = "a", **changes: Any) -> Asked:
    values: dict[str, Any] = {
        "route": "answers",
        "task": "mini.sql",
        "sample_id": "7",
        "due": due,
        "ended": due + 0.5,
        "first": OK,
        "attempts": 1,
        "answered": stage is not None,
        "stage": stage,
        "student": 0,
        "answer": answer,
    }
    return Asked(**(values | changes))


@given(st.lists(st.floats(0, 100), min_size=1), st.floats(0.01, 1))
def test_a_percentile_is_the_smallest_value_that_so_many_do_not_exceed(values: list[float], share: float) -> None:
    found = referee.percentile(values, share)
    below = sum(value <= found for value in values)
    assert found in values and below >= share * len(values) - 1e-9
    smaller = [value for value in values if value < found]
    assert not smaller or sum(value <= max(smaller) for value in values) < share * len(values)


def test_latency_is_that_of_requests_that_needed_one_attempt() -> None:
    own = [asked(0, 0), asked(0, 0, ended=9.0), asked(0, 0, ended=50.0, first=CUT, attempts=3)]
    assert referee.Latency.of(own) == referee.Latency(2, 0.5, 9.0, 9.0, 9.0)
    assert math.isnan(referee.Latency.of([]).p50)


def test_answers_of_stages_that_were_not_promoted_by_then_are_found() -> None:
    early, late, never = asked(100, 1), asked(101, 1), asked(200, 2)
    assert referee.wrong_stage([early, late, never, asked(1, 0), asked(1, None)], {0: 0.0, 1: 102.0}) == [early, never]


def test_an_earlier_stage_may_answer_only_what_was_asked_before_a_later_one_answered() -> None:
    new, under_way, back = asked(10, 1), asked(10.4, 0, ended=20.0), asked(10.6, 0)
    assert referee.stepped_back([asked(1, 0), new, under_way, back, asked(11, 1), asked(30, None)]) == [back]


def test_one_model_gives_one_answer_and_it_is_that_of_its_scores() -> None:
    scored = {(1, 0, "mini.sql"): {"7": "b"}}
    same = [asked(number, 0, "a") for number in range(3)]
    other, wrong, right = asked(5, 0, "c"), asked(6, 1, "a"), asked(7, 1, " b ")
    assert referee.mixed([*same, other, wrong, right], scored) == [other, wrong]


IDS = st.lists(st.sampled_from("abcdef"), max_size=8)


@given(IDS, IDS, IDS)
def test_what_became_of_acknowledged_examples(known: list[str], stored: list[str], learned: list[str]) -> None:
    found = referee.kept(9, known, Counter(stored), Counter(learned))
    assert set(found.lost) == set(known) - set(stored)
    assert set(found.doubled) == {one for ids in (stored, learned) for one in ids if ids.count(one) > 1}
    assert (found.acknowledged, found.different) == (len(known), len(set(known)))
    assert found.stored + len(found.lost) == found.different


def made(samples: Sequence[Sample] = (), **changes: Any) -> Account:
    values: dict[str, Any] = {
        "asked": [asked(1, 0), asked(11, 1)],
        "told": [Tried(OK, 1, {"id": "a"})],
        "samples": list(samples),
        "bursts": [],
        "scores": {"mini.sql": (50.0, 75.0), "food": (None, 40.0)},
        "stages": {"mini.sql (2)": (True, "it rose")},
        "wrong_stage": [],
        "stepped_back": [],
        "mixed": [],
        "compared": 2,
        "kept": {"mini.sql": referee.kept(1, ["a"], Counter("a"), Counter("a"))},
        "killed": [],
        "lines": [],
        "trouble": "",
    }
    return Account(**{"steady": (values | changes)["asked"], **values, **changes})


def sample(at: float, learning: bool = False, mb: float = 100.0, pid: int = 1, **more: float) -> Sample:
    return Sample(at, True, learning, 0, pid, {"service": mb, **more})


def test_the_account_says_everything_and_is_json() -> None:
    questions = [asked(1, 0), asked(11, 1), asked(11.6, 1)]
    own = made([sample(0.0), sample(10.0, learning=True)], asked=questions, bursts=[(12.0, 13.0)])
    said = account.text(own)
    for line in (
        "| mini.sql |   50.0 |  75.0 |",
        "| food     |      – |  40.0 |",
        "- mini.sql (2): served; it rose",
        "| while nothing is learned      |        1 | 500 | 500 | 500 | 500 |",
        "| while learning                |        1 | 500 | 500 | 500 | 500 |",
        "| while users send 32 at a time |        1 | 500 | 500 | 500 | 500 |",
        "| mini.sql |    1 |            1 |         1 |       1 |       0 |    0 |       0 |",
    ):
        assert line in said, said
    assert "Not as it has to be" not in said
    assert json.loads(json.dumps(account.data(own)))["latency"]["learning"]["p95"] == 0.5


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"asked": [asked(1, None)]}, "requests failed: 1"),
        ({"told": [Tried("status 404", 1, None)]}, "requests failed: 1"),
        ({"asked": [asked(1, 0, first=CUT)]}, "requests failed at first, though nothing was killed: 1"),
        ({"mixed": [asked(1, 0)]}, "answers that are not those of the model they name: 1"),
        ({"wrong_stage": [asked(1, 0)]}, "answers of a stage that had not been promoted: 1"),
        ({"stepped_back": [asked(1, 0)]}, "answers of an earlier stage than before: 1"),
        ({"kept": {"x": referee.kept(1, ["a"], Counter(), Counter())}}, "examples lost: 1"),
        ({"kept": {"x": referee.kept(1, ["a"], Counter("a"), Counter("aa"))}}, "examples doubled: 1"),
        ({"trouble": "nothing was learned"}, "nothing was learned"),
    ],
)
def test_what_is_not_as_it_has_to_be_is_said(changes: dict[str, Any], complaint: str) -> None:
    own = made(**changes)
    assert own.complaints == [complaint]
    assert f"- {complaint}" in account.text(own)


def test_what_a_kill_excuses() -> None:
    healed = made(asked=[asked(1, 0, first=CUT)], killed=[(3.0, "service")])
    assert healed.complaints == [] and "1 cut off" in account.text(healed) and "1 service" in account.text(healed)
    replicas = [Sample(0.0, True, False, 0, 1, {"service": 1.0, "replica": 2.0})]
    assert made(replicas, stepped_back=[asked(1, 0)]).complaints == []


def test_memory_is_that_of_the_longest_life_without_its_start() -> None:
    first = [sample(number, mb=900.0, pid=1) for number in range(5)]
    second = [sample(10.0 + number, mb=500.0 if number < 10 else 100 + number, pid=2) for number in range(60)]
    found = account.memory([*first, *second], "service")
    assert found is not None and found[:2] == (500.0, 159.0) and found[2].value == pytest.approx(60.0)
    assert account.memory(first, "replica") is None


@pytest.mark.parametrize(
    ("text", "lesson"),
    [("mini.sql=30", Lesson("mini.sql", "mini.sql", 30)), ("food=mini.rest:2", Lesson("food", "mini.rest", 2))],
)
def test_lessons_are_read(text: str, lesson: Lesson) -> None:
    assert Lesson.of(text) == lesson


@pytest.mark.parametrize("text", ["mini.sql", "food=30", "mini.sql=0", "=3", "food=mini.rest:x"])
def test_other_lessons_are_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="expected TASK=COUNT"):
        Lesson.of(text)


def test_fresh_examples_are_none_of_the_training_set() -> None:
    known, new = fresh("x", "mini.sql", 0, 50, 0), fresh("x", "mini.sql", 50, 20, 0)
    assert fresh("x", "mini.sql", 0, 70, 0) == [*known, *new] and len(new) == 20
    assert len(questions_of("food", "mini.rest", 0)) == 100 and questions_of("food", "mini.rest", 0)[0].task == "food"


class Flaky(BaseHTTPRequestHandler):
    """Answers as it is told to, one entry of ``todo`` for each request, and then well."""

    todo: ClassVar[list[int]] = []
    reply: ClassVar[dict[str, Any]] = {"stage": 1, "student": 0, "answer": "yes"}

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        status = self.todo.pop(0) if self.todo else 200
        if not status:
            self.connection.close()
            return
        chat = {
            "id": "x", "object": "chat.completion", "created": 1, "model": "m",
            "system_fingerprint": "stage-1.student-0",
            "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "yes"}}],
        }  # fmt: skip
        body = json.dumps(chat if "chat" in self.path else self.reply).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.mark.parametrize("route", ["answers", "openai"])
@pytest.mark.parametrize(
    ("todo", "first", "attempts", "answered"),
    [
        ([], OK, 1, True),
        ([0], CUT, 2, True),
        ([503], "status 503", 2, True),
        ([404], "status 404", 1, False),
    ],
)
def test_requests_are_tried_again_where_that_helps(
    route: str, todo: list[int], first: str, attempts: int, answered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Flaky, "todo", list(todo))
    with ThreadingHTTPServer(("127.0.0.1", 0), Flaky) as server:
        Thread(target=server.serve_forever, daemon=True).start()

        async def ask() -> Asked:
            client = Client(f"http://127.0.0.1:{server.server_port}", 20.0)
            try:
                return await client.ask(questions_of("mini.sql", "mini.sql", 0)[0], route, "run", time.time())
            finally:
                await client.close()

        found = asyncio.run(ask())
        server.shutdown()
    assert (found.first, found.attempts, found.answered, found.healed) == (
        first, attempts, answered, answered and attempts > 1,
    )  # fmt: skip
    assert not answered or (found.stage, found.student, found.answer) == (1, 0, "yes")


def test_a_service_that_is_not_there_is_waited_for_and_an_answer_that_is_late_is_not() -> None:
    import httpx

    async def refused() -> None:
        async with httpx.AsyncClient(trust_env=False) as client:
            await client.get("http://127.0.0.1:1/")

    async def late() -> None:
        raise httpx.ReadTimeout("late")

    async def wrong() -> None:
        raise KeyError("ours")

    assert asyncio.run(persist(refused, 1.0)) == Tried(REFUSED, 2, None)
    assert asyncio.run(persist(late, 9.0)) == Tried(LATE, 1, None)
    with pytest.raises(KeyError):
        asyncio.run(persist(wrong, 9.0))


EXPERIMENT = ExperimentConfig.model_validate(
    {
        "method": "lamol",
        "stream": ["mini.sql"],
        "model": {"name": "gpt2"},
        "training": {"epochs": 1},
        "live": {"min_examples": 3},
    }
)


def test_a_run_is_settled_when_all_was_learned_and_judged(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", EXPERIMENT, ClusterConfig(), {})
    run.save_state(RunState(stages_done=1))
    assert not on_disk.is_settled(run), "nothing was judged"
    run.checkpoint(0, 1, 0).mkdir(parents=True)
    decide(run, 0, promoted=True, by="gate", why="first")
    assert not on_disk.is_settled(run), "its command has not ended"
    for name in ("summary.json", "report.md"):
        (run.path / name).write_text("{}")
    assert on_disk.is_settled(run)
    box = Inbox(run.path)
    receipts = box.add("mini.sql", [Example(f"c{number}", "q", ("a",)) for number in range(2)])
    assert on_disk.is_settled(run), "too few to be learned"
    receipts += box.add("mini.sql", [Example("c2", "q", ("a",))])
    assert not on_disk.is_settled(run)
    (given,) = take(run, ["mini.sql"])
    assert not on_disk.is_settled(run), "given to a stage that has not begun"
    ids = Counter(receipt.id for receipt in receipts)
    assert on_disk.stored(run, "mini.sql") == ids and on_disk.learned(run, "mini.sql") == Counter()
    longer = EXPERIMENT.model_copy(update={"stream": [*EXPERIMENT.stream, stage_task(run, EXPERIMENT, given)]})
    again = RunDirectory.create(tmp_path / "again", longer, ClusterConfig(), {})
    again.save_state(RunState(stages_done=2))
    assert on_disk.learned(again, "mini.sql") == ids
    assert on_disk.stage_names(again) == ["mini.sql", "mini.sql (2)"]
    assert on_disk.promotions(run).keys() == {0}


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_processes_of_a_service_are_found_also_below_its_threads() -> None:
    code = (
        "import subprocess, sys, threading, time\n"
        "words = [sys.executable, '-c', 'import time; time.sleep(60)', 'ray_l4.cli', 'extend']\n"
        "thread = threading.Thread(target=lambda: subprocess.Popen(words).wait())\n"
        "thread.daemon = True\nthread.start()\ntime.sleep(60)"
    )
    service = processes.ServiceProcess(None, [sys.executable, "-c", code], Path(os.devnull))
    service.start()
    try:
        deadline = time.monotonic() + 20
        while not (found := service.of_kind(processes.COMMAND)):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert service.of_kind(processes.SERVICE) == [service.pid] and service.of_kind(processes.STUDENT) == []
        assert service.memory()["service"] > 1
        assert processes.kill(found[0]) and processes.wait_until_gone(found, 10) == []
    finally:
        service.kill()
    assert service.has_ended() and service.of_kind(processes.SERVICE) == []
    assert service.stop() == -9, "it had ended"
    other = subprocess.Popen([sys.executable, "-c", ""])
    other.wait()
    assert not processes.kill(other.pid)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--kill"], 2, "--kill needs --start"),
        (["--rate", "0"], 2, "expected more than 0 questions a second"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    arguments: list[str], code: int, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["http://127.0.0.1:1", "--run", str(tmp_path), *arguments]) == code
    assert message in capsys.readouterr().err
