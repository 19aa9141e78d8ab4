"""Requests that cannot be answered: each gets OpenAI's error object, which says what is wrong; the service goes on."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.serve.serve_fixtures import Served

ANSWERS, COMPLETIONS, CHAT = "/v1/answers", "/v1/completions", "/v1/chat/completions"
ASKED = {"task": "mini.woz", "context": "a"}
"""A good question; ``RUN`` stands for the name of the run."""
PLAIN = {"model": "RUN", "prompt": "a"}
TURNS = [{"role": "user", "content": "a"}]
TALK = {"model": "RUN/mini.woz", "messages": TURNS}


def turns(*roles: str) -> dict[str, Any]:
    return TALK | {"messages": [{"role": role, "content": "a"} for role in roles]}


BAD: list[tuple[str, Any, int, str | None, str]] = [
    (ANSWERS, ASKED | {"task": "mini.wos"}, 404, "task", "Did you mean 'mini.woz'?"),
    (ANSWERS, {"context": "a"}, 400, "task", "Field required"),
    (ANSWERS, ASKED | {"task": 3}, 400, "task", "valid string"),
    (ANSWERS, ASKED | {"context": None}, 400, "context", "valid string"),
    (ANSWERS, ASKED | {"context": " ", "question": "\n"}, 400, None, "both blank"),
    (ANSWERS, ASKED | {"colour": "red"}, 400, "colour", "Extra inputs are not permitted"),
    (ANSWERS, ASKED | {"max_tokens": 0}, 400, "max_tokens", "greater than or equal to 1"),
    (ANSWERS, ASKED | {"max_tokens": 10**9}, 400, "max_tokens", "at most 4,096"),
    (ANSWERS, ASKED | {"max_tokens": "5"}, 400, "max_tokens", "valid integer"),
    (ANSWERS, ASKED | {"temperature": 2.5}, 400, "temperature", "less than or equal to 2"),
    (ANSWERS, ASKED | {"temperature": float("nan")}, 400, "temperature", "finite"),
    (ANSWERS, ASKED | {"top_p": 0}, 400, "top_p", "greater than 0"),
    (ANSWERS, ASKED | {"question": "why " * 5000}, 400, "prompt", "the question has"),
    (ANSWERS, [ASKED], 400, None, "of type list, expected an object"),
    (COMPLETIONS, PLAIN | {"model": "other"}, 404, "model", "there is no model 'other'"),
    (COMPLETIONS, PLAIN | {"model": "RUN/"}, 404, "model", "there is no model"),
    (COMPLETIONS, PLAIN | {"model": "RUN/mini.woz/x"}, 404, "model", "there is no model"),
    (COMPLETIONS, {"model": "RUN"}, 400, "prompt", "Field required"),
    (COMPLETIONS, PLAIN | {"prompt": ["a", "b"]}, 400, "prompt", "a list of 2"),
    (COMPLETIONS, PLAIN | {"prompt": [1, 2]}, 400, "prompt.str", "valid string"),
    (COMPLETIONS, PLAIN | {"prompt": ""}, 400, "prompt", "blank"),
    (COMPLETIONS, PLAIN | {"n": 2}, 400, None, "n is not supported"),
    (COMPLETIONS, PLAIN | {"echo": True}, 400, None, "echo is not supported"),
    (COMPLETIONS, PLAIN | {"logprobs": 3}, 400, None, "logprobs is not supported"),
    (COMPLETIONS, PLAIN | {"stop": ["a"] * 5}, 400, "stop", "up to 4 texts"),
    (COMPLETIONS, PLAIN | {"stop": ""}, 400, "stop", "none of them empty"),
    (COMPLETIONS, PLAIN | {"stream": "yes"}, 400, "stream", "valid boolean"),
    (COMPLETIONS, PLAIN | {"stream": True, "prompt": "a " * 4000}, 400, "prompt", "Shorten it"),
    (CHAT, TALK | {"messages": []}, 400, "messages", "at least 1 item"),
    (CHAT, TALK | {"messages": "a"}, 400, "messages", "valid list"),
    (CHAT, turns("user", "assistant"), 400, "messages", "a message of the user at the end"),
    (CHAT, turns("tool", "user"), 400, "messages.0.role", "'system'"),
    (CHAT, TALK | {"messages": [{"role": "user", "content": None}]}, 400, "messages.0.content.str", "valid string"),
    (CHAT, TALK | {"tools": [{"type": "function"}]}, 400, None, "tools is not supported"),
    (CHAT, TALK | {"response_format": {"type": "json_object"}}, 400, None, "response_format is not supported"),
    (CHAT, TALK | {"model": "RUN"}, 400, "model", "no chat template; name a task (RUN/mini.rest, RUN/mini.woz)"),
]


@pytest.mark.parametrize(("path", "body", "status", "param", "words"), BAD, ids=lambda value: str(value)[:60])
def test_a_wrong_body_is_refused(
    served: Served, path: str, body: Any, status: int, param: str | None, words: str
) -> None:
    given = json.dumps(body).replace("RUN", served.name)
    response = served.client.post(path, content=given)
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert words.replace("RUN", served.name) in error["message"]
    assert error["param"] == param
    assert error["code"]
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "it is empty"),
        (b"{", "not JSON"),
        (b'{"task": ' + b"[" * 100_000, "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b'{"task": "\xe9"}', "not JSON"),
        (b"null", "NoneType"),
        (rb'{"task": "mini.woz", "context": "\uD800"}', "surrogates"),
        (rb'{"task": "mini.woz", "\udfff": 1}', "surrogates"),
    ],
    ids=["empty", "cut off", "deep", "half a character", "latin-1", "null", "half a value", "half a key"],
)
def test_what_is_not_json_is_refused(served: Served, content: bytes, words: str) -> None:
    response = served.client.post(ANSWERS, content=content)
    assert response.status_code == 400
    assert words in response.json()["error"]["message"]
    assert response.json()["error"]["code"] == "invalid_json"


@pytest.mark.parametrize(
    ("method", "path", "status", "words"),
    [
        ("GET", "/v1/nothing", 404, "there is nothing at /v1/nothing"),
        ("GET", ANSWERS, 405, "/v1/answers does not take GET"),
        ("DELETE", "/v1/models", 405, "does not take DELETE"),
        ("GET", "/v1/models/other", 404, "there is no model 'other'"),
        ("GET", "/docs", 404, "there is nothing at /docs"),
    ],
)
def test_a_wrong_route_or_method_is_refused(served: Served, method: str, path: str, status: int, words: str) -> None:
    response = served.client.request(method, path)
    assert response.status_code == status
    assert words in response.json()["error"]["message"]
    assert (status != 405) or response.headers["allow"]


def test_it_still_serves_after_all_of_that(served: Served) -> None:
    assert served.get("/healthz").json()["status"] == "ok"
    assert served.post(ANSWERS, ASKED).status_code == 200
