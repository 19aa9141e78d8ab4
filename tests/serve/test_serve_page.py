"""The page as it is sent: whole, and allowed to run and load nothing but what is in it."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from importlib.resources import files

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from ray_l4.metrics.registry import METRICS
from ray_l4.serve.page_route import SCRIPTS, page, page_router


class Parts(HTMLParser):
    """The elements of a document, with the text of scripts and styles."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: dict[str, str] = {}
        self._within = ""
        self.feed(document)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        self._within = tag

    def handle_endtag(self, tag: str) -> None:
        self._within = ""

    def handle_data(self, data: str) -> None:
        if self._within in ("script", "style"):
            self.texts[self._within] = self.texts.get(self._within, "") + data

    def of(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def parts() -> Parts:
    return Parts(page()[0])


def source_of(policy: str, name: str) -> str:
    return next(part.split(maxsplit=1)[1] for part in policy.split("; ") if part.startswith(f"{name} "))


def test_the_policy_allows_the_script_and_the_style_that_are_there_and_nothing_else(parts: Parts) -> None:
    _, policy = page()
    for name in ("script", "style"):
        digest = base64.b64encode(hashlib.sha256(parts.texts[name].encode()).digest()).decode()
        assert source_of(policy, f"{name}-src") == f"'sha256-{digest}'"
    assert source_of(policy, "default-src") == source_of(policy, "form-action") == "'none'"
    assert source_of(policy, "frame-ancestors") == source_of(policy, "base-uri") == "'none'"
    assert source_of(policy, "connect-src") == "'self'"
    assert "unsafe" not in policy


def test_the_page_is_sent_with_its_policy() -> None:
    app = FastAPI()
    app.include_router(page_router())
    answer = TestClient(app).get("/")
    assert answer.text == page()[0]
    assert answer.headers["content-security-policy"] == page()[1]
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["content-type"] == "text/html; charset=utf-8"


def test_nothing_is_fetched_from_elsewhere(parts: Parts) -> None:
    for tag, attributes in parts.elements:
        for name in ("src", "href", "srcset", "action", "data"):
            value = attributes.get(name, "")
            assert not value or value.startswith(("#", "data:image/svg+xml,")), (tag, value)
    found = re.findall(r"\w+://[^\s'\"]+", page()[0])
    assert {*found} == {"http://www.w3.org/2000/svg"}  # a name, which nobody looks up
    assert not re.search(r"url\(|@import", parts.texts["style"])


def test_no_text_becomes_markup(parts: Parts) -> None:
    """What people and models write is inserted as text alone; markup is read only to see whether it has changed."""
    script = parts.texts["script"]
    assert not re.search(r"insertAdjacentHTML|outerHTML|document\.write|eval\(|new Function|srcdoc|DOMParser", script)
    assert re.findall(r".*innerHTML.*", script) == [
        "  if (fresh.innerHTML !== place.innerHTML) place.replaceChildren(...fresh.childNodes);"
    ]
    assert not any(name.startswith("on") or name == "style" for _, attributes in parts.elements for name in attributes)


def test_all_that_people_use_has_a_name(parts: Parts) -> None:
    labelled = {attributes["for"] for attributes in parts.of("label")}
    for tag in ("textarea", "input", "select"):
        assert {attributes["id"] for attributes in parts.of(tag)} <= labelled
    ids = [attributes["id"] for _, attributes in parts.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in parts.elements:
        for name in ("aria-describedby", "aria-labelledby", "aria-controls", "for"):
            assert attributes.get(name) is None or attributes[name] in ids
    live = [attributes for _, attributes in parts.elements if "aria-live" in attributes or attributes.get("role")]
    assert {"alert", "status"} <= {attributes.get("role") for attributes in live}
    assert {"polite"} <= {attributes.get("aria-live") for attributes in live}


def test_the_script_uses_no_element_that_is_not_there(parts: Parts) -> None:
    ids = {attributes["id"] for _, attributes in parts.elements if "id" in attributes}
    used = re.findall(r'(?:byId|tell|onSubmit)\("([\w-]+)"', parts.texts["script"])
    assert len(used) > 40
    assert {*used} <= ids


def test_a_new_task_can_have_every_metric_that_needs_no_more_than_texts(parts: Parts) -> None:
    offered = {attributes["value"] for attributes in parts.of("option")}
    assert offered == {name for name, metric in METRICS.items() if not metric.needs_meta}


def test_every_script_is_part_of_the_page() -> None:
    folder = files("ray_l4.serve") / "page"
    assert {path.name for path in folder.iterdir() if path.name.endswith(".js")} == {*SCRIPTS}
