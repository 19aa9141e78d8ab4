"""The page in a real browser, with a real service behind it: asked, corrected, taught, on a desktop and a phone."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from ray_l4.serve.app import create_app
from ray_l4.serve.choice import served_checkpoint
from ray_l4.serve.extras import routers
from ray_l4.serve.limits import Limits
from ray_l4.serve.meter import Meter
from ray_l4.serve.served_model import Loader
from ray_l4.serve.server import Server, bound_socket
from ray_l4.serve.service import Service
from ray_l4.store.inbox.assignments import waiting
from ray_l4.store.inbox.places import shelf_folder
from ray_l4.store.inbox.segments import read_segment, segments_in
from ray_l4.store.promotion import decide
from ray_l4.store.run_directory import RunDirectory

pytestmark = pytest.mark.browser

KEY = "a-key-of-sixteen-or-more"
NASTY = "<img src=x onerror=\"document.title='XSS'\"><script>document.title='XSS'</script> & {{ 1 }}"
LIMITS = Limits(body_bytes=20_000)
TASK = "mini.rest"


@pytest.fixture(scope="module")
def run(finished: Callable[[str], tuple[RunDirectory, Any]], tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A copy of a finished run, whose last stage was refused for a reason that would be markup."""
    copy = tmp_path_factory.mktemp("page") / "run"
    shutil.copytree(finished("l4")[0].path, copy)
    own = RunDirectory(copy)
    decide(own, 0, promoted=True, by="hand", why="the first one")
    decide(own, 1, promoted=True, by="gate", why="it rose")
    decide(own, 1, promoted=False, by="gate", why=NASTY)
    decide(own, 1, promoted=True, by="hand", why=NASTY)
    return own


@pytest.fixture(scope="module")
def service(run: RunDirectory) -> Iterator[Service]:
    meter = Meter()
    service = Service(LIMITS, meter, run)
    service.swap(Loader(LIMITS, meter, "cpu").load(served_checkpoint(run).folder))
    yield service
    service.close()


def serve(service: Service, keys: tuple[str, ...] = ()) -> Iterator[str]:
    """The address of a service, until it is not needed any more."""
    app = create_app(service, keys, routers(service.run))
    server = Server(app, bound_socket("127.0.0.1", 0), LIMITS)
    assert server.wait_until_started(20)
    yield server.address
    server.stop()


@pytest.fixture(scope="module")
def address(service: Service) -> Iterator[str]:
    yield from serve(service)


@pytest.fixture(scope="module")
def locked_address(service: Service) -> Iterator[str]:
    yield from serve(service, (KEY,))


@pytest.fixture
def page(browser: Browser, address: str, request: pytest.FixtureRequest) -> Iterator[Page]:
    """The page with its first overview. Errors in it fail the test, unless the test answers requests itself."""
    width, scheme = getattr(request, "param", (1200, "light"))
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    errors: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if "Failed to load" not in message.text else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    expect(page.locator("#learned-panel")).to_be_visible()
    yield page
    page.close()
    assert errors == []
    assert all(url.startswith((address, "data:")) for url in asked)


def press(page: Page, *keys: str) -> None:
    for key in keys:
        page.keyboard.press(key)


def focused(page: Page) -> str:
    return str(page.evaluate("document.activeElement.id"))


def ask(page: Page, context: str, question: str = "what?") -> None:
    page.fill("#context", context)
    page.fill("#question", question)
    page.click("#ask")
    expect(page.locator("#answer-block")).to_be_visible()


def look_again(page: Page) -> None:
    """Let the page ask for the overview now, as when somebody returns to it."""
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")


def stored(run: RunDirectory, task: str) -> list[Any]:
    folder = shelf_folder(run.path, task, "segments")
    return [one for segment in segments_in(folder) for one in read_segment(folder, segment)]


def answer_with(page: Page, path: str, status: int, body: dict[str, Any], **headers: str) -> None:
    """Let the service answer a request so."""

    def fulfil(route: Route) -> None:
        route.fulfill(status=status, body=json.dumps(body), headers={"Content-Type": "application/json", **headers})

    page.route(f"**{path}", fulfil)


def error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "x", "param": None, "code": None}}


def test_a_question_is_asked_and_its_answer_corrected_with_the_keyboard_alone(page: Page, run: RunDirectory) -> None:
    press(page, "Tab")
    assert focused(page) == ""  # the link that skips the header
    press(page, "Enter", "Tab")
    assert focused(page) in ("task", "context")
    page.focus("#task")
    press(page, "Tab")
    page.keyboard.type("by keyboard")
    press(page, "Tab")
    page.keyboard.type("which one ?")
    press(page, "Control+Enter")
    expect(page.locator("#answer-place")).to_contain_text("From stage 1 (mini.woz), student")
    press(page, "Tab", "Tab", "Tab")
    assert focused(page) == "wrong"
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineWidth")
    assert outline == "3px"
    press(page, "Enter")
    assert focused(page) == "correction"
    page.keyboard.type("the right one")
    press(page, "Control+Enter")
    expect(page.locator("#feedback-state")).to_contain_text(re.compile(r"Stored\. \d+ example"))
    assert focused(page) == "context"
    found = next(one for one in stored(run, TASK) if one.context == "by keyboard")
    assert (found.question, found.answers, found.source) == ("which one ?", ("the right one",), "feedback")
    assert found.given is not None
    expect(page.locator("#figures")).to_contain_text(f"Waiting examples{waiting(run.path, TASK).examples}")


def test_an_answer_is_found_right_and_a_second_time_it_is_there_already(page: Page, run: RunDirectory) -> None:
    answer_with(page, "/v1/answers", 200, {"answer": "fine", "stage": 1, "student": 0, "finish_reason": "stop"})
    for expected in ("Stored.", "This example was there already."):
        ask(page, "is this right ?")
        page.click("#right")
        expect(page.locator("#feedback-state")).to_contain_text(expected)
    (found,) = [one for one in stored(run, TASK) if one.context == "is this right ?"]
    assert (found.answers, found.given) == (("fine",), "fine")


def test_a_new_task_is_begun_and_taught(page: Page, run: RunDirectory) -> None:
    name = f"new {NASTY.replace('|', '')}"[:60].strip()
    page.click("#new-task > summary")
    page.fill("#new-name", name)
    page.fill("#new-question", "what now ?")
    page.click("#new-task-form button")
    expect(page.locator("#task")).to_have_value(name)
    expect(page.locator("#ask")).to_be_disabled()
    expect(page.locator("#task-note")).to_contain_text("Not learned yet")
    expect(page.locator("#question-hint")).to_contain_text("what now ?")
    for number in (1, 2):
        page.fill("#context", f"context {number}")
        page.fill("#correction", "this")
        page.keyboard.press("Control+Enter")
        expect(page.locator("#feedback-state")).to_contain_text(f"Stored. {number} example")
        expect(page.locator("#context")).to_have_value("")
        expect(page.locator("#correct-form")).to_be_visible()
    assert [one.question for one in stored(run, name)] == ["what now ?"] * 2
    row = page.locator("#tasks tbody tr").filter(has_text=name)
    expect(row).to_contain_text("new")
    expect(row.locator("td").last).to_have_text("2")
    page.click("#new-task > summary")
    page.fill("#new-name", name)
    page.locator("#new-task-form").evaluate("form => form.requestSubmit()")
    expect(page.locator("#new-task-error")).to_contain_text("other settings")


def test_text_of_models_people_and_records_stays_text(page: Page) -> None:
    answer_with(page, "/v1/answers", 200, {"answer": NASTY, "stage": 1, "student": 0, "finish_reason": "length"})
    ask(page, NASTY)
    assert page.locator("#answer").text_content() == NASTY
    expect(page.locator("#answer-place")).to_contain_text("It was cut off")
    expect(page.locator("#stages")).to_contain_text(NASTY)
    page.click("#wrong")
    page.click("#store")
    expect(page.locator("#feedback-state")).to_be_visible()
    answer_with(page, "/v1/answers", 400, error(NASTY))
    page.fill("#context", "again")
    page.click("#ask")
    expect(page.locator("#ask-error")).to_contain_text(NASTY)
    assert page.locator("img, main script").count() == 0
    assert "XSS" not in page.title()


@pytest.mark.parametrize(
    ("status", "said", "headers", "shown"),
    [
        (429, "more than 5 requests in a minute", {"Retry-After": "7"}, "Too many requests. Try again in 7 seconds."),
        (503, "no stage has finished", {"Retry-After": "1"}, "Not now: No stage has finished. Try again in 1 second."),
        (500, "the model failed", {}, "The model failed."),
    ],
)
def test_refusals_are_told_plainly_and_what_was_typed_stays(
    page: Page, status: int, said: str, headers: dict[str, str], shown: str
) -> None:
    answer_with(page, "/v1/answers", status, error(said), **headers)
    page.fill("#context", "kept")
    page.click("#ask")
    expect(page.locator("#ask-error")).to_contain_text(shown)
    expect(page.locator("#context")).to_have_value("kept")
    expect(page.locator("#ask")).to_be_enabled()
    page.unroute("**/v1/answers")
    ask(page, "kept")
    expect(page.locator("#ask-error")).to_be_hidden()


def test_what_is_too_long_for_the_service_is_told(page: Page) -> None:
    page.fill("#context", "x" * 30_000)
    page.click("#ask")
    expect(page.locator("#ask-error")).to_contain_text("That is too long. The body has more than 20,000 bytes.")


def test_a_service_that_is_gone_is_told_and_found_again(page: Page) -> None:
    page.route("**/v1/*", lambda route: route.abort())
    page.fill("#context", "kept")
    page.fill("#question", "what ?")
    page.click("#ask")
    expect(page.locator("#ask-error")).to_contain_text("The server cannot be reached")
    look_again(page)
    expect(page.locator("#connection")).to_contain_text("This page keeps trying.")
    page.unroute("**/v1/*")
    look_again(page)
    expect(page.locator("#connection")).to_be_hidden()
    page.click("#ask")
    expect(page.locator("#answer-block")).to_be_visible()


def test_an_api_key_is_asked_for_and_kept(browser: Browser, locked_address: str) -> None:
    page = browser.new_page()
    page.goto(locked_address)
    expect(page.locator("#key-dialog")).to_be_visible()
    assert focused(page) == "key"
    page.keyboard.press("Escape")
    expect(page.locator("#key-dialog")).to_be_visible()
    page.keyboard.type("a wrong one")
    page.keyboard.press("Enter")
    expect(page.locator("#key-note")).to_contain_text("does not know this key")
    page.keyboard.type(KEY)
    page.keyboard.press("Enter")
    expect(page.locator("#learned-panel")).to_be_visible()
    expect(page.locator("#key-dialog")).to_be_hidden()
    ask(page, "with a key")
    page.reload()
    expect(page.locator("#learned-panel")).to_be_visible()
    expect(page.locator("#key-dialog")).to_be_hidden()
    assert page.evaluate("Object.keys(localStorage).length") == 0
    page.close()


def test_a_checkpoint_without_a_run_can_be_asked_and_not_corrected(browser: Browser, run: RunDirectory) -> None:
    alone = Service(LIMITS, Meter(), None)
    alone.swap(Loader(LIMITS, alone.meter, "cpu").load(served_checkpoint(run).folder))
    for address in serve(alone):
        page = browser.new_page()
        page.goto(address)
        expect(page.locator("#serving")).to_contain_text("answers")
        ask(page, "alone")
        for name in ("#judge", "#learned-panel", "#new-task", "#correct-form"):
            expect(page.locator(name)).to_be_hidden()
        page.close()


def test_old_stages_are_folded_away_and_what_is_under_way_is_shown(page: Page, address: str) -> None:
    found = page.request.get(f"{address}/v1/overview").json()
    first = found["stages"][0]
    found["stages"] = [first | {"stage": number, "served": number == 8} for number in range(9)]
    found["stages"].append(first | {"stage": 9, "state": "under way", "finished": None, "student": None, "scores": {}})
    found["learning"] = {"stage": 9, "name": "x", "tasks": [TASK], "running": True, "epochs_done": 1, "epochs": 4}
    found["problems"] = [NASTY]
    answer_with(page, "/v1/overview", 200, found)
    look_again(page)
    expect(page.locator("#learning")).to_contain_text("Learning now: stage 9, mini.rest (1 of 4 epochs done)")
    expect(page.locator("#problems")).to_have_text(NASTY)
    assert page.locator("#stages > li").count() == 6
    expect(page.locator("#stages > li").first).to_contain_text("under way")
    expect(page.locator("#serving")).to_contain_text("Stage 1, student")
    assert page.locator("#earlier-stages > li").count() == 4
    page.focus("#earlier-title")
    page.keyboard.press("Enter")
    expect(page.locator("#earlier-stages > li").last).to_be_visible()
    found["learning"]["running"] = False
    answer_with(page, "/v1/overview", 200, found)
    look_again(page)
    expect(page.locator("#learning")).to_contain_text("Not finished: stage 9")
    expect(page.locator("#earlier-stages > li").last).to_be_visible()  # what was unfolded stays so


WIDTHS = pytest.mark.parametrize(
    "page", [(width, scheme) for width in (1200, 360) for scheme in ("light", "dark")], indirect=True, ids=str
)


@WIDTHS
def test_the_page_fits_and_can_be_read(page: Page) -> None:
    ask(page, "a very long word: " + "x" * 300)
    page.click("#wrong")
    page.click("#new-task > summary")
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    colours = """[...document.querySelectorAll('h1, label, .hint, td, th, button, textarea, #answer, .tag, dd, dt')]
        .filter(each => each.offsetParent && !each.disabled).map(each => {
            const own = getComputedStyle(each)
            let around = each
            while (getComputedStyle(around).backgroundColor === 'rgba(0, 0, 0, 0)') around = around.parentElement
            const light = colour => {
                const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map(part => Number(part) / 255)
                    .map(part => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
                return 0.2126 * r + 0.7152 * g + 0.0722 * b
            }
            const both = [light(own.color), light(getComputedStyle(around).backgroundColor)].sort((a, b) => a - b)
            return [each.id || each.textContent, (both[1] + 0.05) / (both[0] + 0.05)]
        }).filter(([name, contrast]) => contrast < 4.5)"""
    assert page.evaluate(colours) == []


@WIDTHS
def test_the_chart_has_a_line_and_marks_for_each_task(page: Page) -> None:
    box = page.locator("#drawing svg").bounding_box()
    size = page.viewport_size
    assert box is not None
    assert size is not None
    assert 250 < box["width"] < size["width"]
    assert page.locator("#drawing path.line").count() == 2
    assert page.locator("#drawing circle.mark").count() == 4
    assert page.locator("#legend li").all_inner_texts() == ["mini.rest", "mini.woz"]
    assert "after the last one: mini.rest" in str(page.locator("#drawing svg").get_attribute("aria-label"))
    outside = page.evaluate(
        """(() => { const frame = document.querySelector('#chart').getBoundingClientRect()
            return [...document.querySelectorAll('#drawing text')].filter(text => {
                const box = text.getBoundingClientRect()
                return box.left < frame.left - 1 || box.right > frame.right + 1
            }).length })()"""
    )
    assert outside == 0
    assert page.evaluate("document.querySelector('.wide').scrollWidth <= document.querySelector('.wide').clientWidth")
