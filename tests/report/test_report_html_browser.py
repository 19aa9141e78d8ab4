"""The page in a real browser: it renders without errors and without requests, and every figure is visible."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from tests.report.html_runs import page_of, write_run

pytestmark = pytest.mark.browser

FIGURES = (
    *("matrix-0", "matrix-1", "matrix-2", "matrix-3", "forgetting", "curves-0", "curves-1", "curves-2", "curves-3"),
    *("loss", "disagreement", "exchange-steps", "timeline", "time", "memory"),
)
WIDTHS = (1200, 360)
"""Widths of a desktop screen and a phone, in pixels."""


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page about two runs: one of four students with all figures, and one with few."""
    folder = tmp_path_factory.mktemp("browser")
    path = folder / "report.html"
    peers = {"count": 4, "topology": [[0, 1], [1, 2], [2, 3], [3, 0], [0, 2]]}
    runs = [write_run(folder / "l4", peers=peers), write_run(folder / "multi", "multi-qa")]
    path.write_text(page_of(*runs), encoding="utf-8")
    return path


@pytest.fixture(scope="module", params=[(width, scheme) for width in WIDTHS for scheme in ("light", "dark")], ids=str)
def page(browser: Browser, html: Path, request: pytest.FixtureRequest) -> Iterator[Page]:
    """The page with all its parts unfolded. Errors and requests of the page fail the last test that uses it."""
    width, scheme = request.param
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    errors: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: errors.append(message.text))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda asked: requests.append(asked.url))
    page.goto(html.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(fold => { fold.open = true })")
    yield page
    page.close()
    assert errors == []
    assert requests == [html.as_uri()]


def test_every_figure_is_visible(page: Page) -> None:
    ids = page.evaluate("[...document.querySelectorAll('figure')].map(figure => figure.id)")
    assert [name.removeprefix("run-0-") for name in ids if name.startswith("run-0-")] == list(FIGURES)
    assert {"comparison-bars", "comparison-tasks", "run-1-matrix-0", "run-1-curves-0"} <= set(ids)
    width = page.viewport_size["width"] if page.viewport_size else 0
    for name in ids:
        box = page.locator(f"#{name} svg").bounding_box()
        assert box is not None
        assert box["width"] > 200, name
        assert box["height"] > 50, name
        assert box["x"] >= 0, name
        assert box["x"] + box["width"] <= width, name
        drawn = page.evaluate(f"document.querySelectorAll('#{name} svg :is(path, use, text)').length")
        assert drawn > 5, name


def test_no_text_extends_beyond_its_figure(page: Page) -> None:
    """Fonts differ between machines, but names and numbers must fit with all of them."""
    outside = page.evaluate(
        """[...document.querySelectorAll('figure svg')].flatMap(svg => {
            const frame = svg.getBoundingClientRect()
            return [...svg.querySelectorAll('text')].filter(text => {
                const box = text.getBoundingClientRect()
                return box.left < frame.left - 2 || box.right > frame.right + 2
                    || box.top < frame.top - 2 || box.bottom > frame.bottom + 2
            }).map(text => svg.parentElement.id + ': ' + text.textContent)
        })"""
    )
    assert outside == []


def test_the_page_is_no_wider_than_the_window(page: Page) -> None:
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def test_text_contrasts_with_the_page(page: Page) -> None:
    """Text and background follow the colour scheme, including in figures that set their own colours."""
    ink, paper = page.evaluate(
        """[getComputedStyle(document.querySelector('#run-0-loss svg text')).fill,
            getComputedStyle(document.documentElement).backgroundColor]
           .map(colour => colour.match(/\\d+/g).slice(0, 3).reduce((sum, part) => sum + Number(part), 0) / 3)"""
    )
    assert abs(ink - paper) > 180


def test_text_in_figures_is_not_small(page: Page) -> None:
    """A drawing is not shrunk to a narrow screen: its text has 11 pixels or more."""
    smallest = page.evaluate(
        """Math.min(...[...document.querySelectorAll('figure svg text')].map(text => {
            const svg = text.ownerSVGElement, scale = svg.getBoundingClientRect().width / svg.viewBox.baseVal.width
            return parseFloat(getComputedStyle(text).fontSize) * scale
        }))"""
    )
    assert smallest >= 10.9


def test_what_is_wider_than_its_place_shows_it_and_can_be_scrolled_by_keyboard(page: Page) -> None:
    wider = "[...document.querySelectorAll('.wide')].filter(box => box.scrollWidth > box.clientWidth + 1)"
    count, cues, focusable = page.evaluate(
        f"""(() => {{ const boxes = {wider}; return [boxes.length,
            boxes.filter(box => getComputedStyle(box).backgroundImage.split('linear-gradient').length == 5).length,
            boxes.filter(box => box.tabIndex == 0 && box.getAttribute('aria-label')).length] }})()"""
    )
    assert count == cues == focusable
    if page.viewport_size and page.viewport_size["width"] == min(WIDTHS):
        assert count > 0
        page.evaluate(f"{wider}[0].focus()")
        page.keyboard.press("ArrowRight")
        page.wait_for_timeout(500)  # the scrolling is animated
        assert page.evaluate(f"{wider}[0].scrollLeft") > 0


@pytest.mark.parametrize("width", WIDTHS)
def test_several_runs_are_a_short_page_whose_parts_unfold_by_keyboard(browser: Browser, html: Path, width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 800})
    page.goto(html.as_uri())
    folded = page.evaluate("document.documentElement.scrollHeight")
    assert folded < 2500
    page.locator("details.run > summary").first.focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.querySelector('details.run').open")
    assert page.evaluate("document.documentElement.scrollHeight") > folded + 2000
    page.close()
