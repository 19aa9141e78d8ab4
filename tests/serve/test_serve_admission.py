"""Who is answered: keys, other sites, sizes and rates; and what is counted."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from ray_l4.errors import ConfigError
from ray_l4.serve.access import is_loopback, read_keys
from ray_l4.serve.admission import Rate
from ray_l4.store.run_directory import RunDirectory
from tests.serve.serve_fixtures import Served, serving

KEY, OTHER = "k" * 32, "o" * 32
ASKED = {"task": "mini.woz", "context": "a"}


@pytest.fixture(scope="module")
def guarded(run: RunDirectory) -> Iterator[Served]:
    """A service with keys and narrow limits."""
    limits = {"per_minute": 20, "body_bytes": 1000}
    with serving(run.path, limits, keys=frozenset({KEY, OTHER})) as service:
        yield service


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.mark.parametrize(
    "headers",
    [
        {},
        bearer("wrong" * 8),
        bearer(KEY[:-1]),
        {"Authorization": "Bearer"},
        {"Authorization": f"Basic {KEY}"},
        bearer("é" * 9),
    ],
)
def test_without_a_key_nothing_is_told(guarded: Served, headers: dict[str, str]) -> None:
    sent = {name: value.encode() for name, value in headers.items()}
    for path in ("/v1/models", "/metrics", "/v1/nothing"):
        response = guarded.client.get(path, headers=sent)
        assert response.status_code == 401
        assert response.json()["error"]["code"] == "invalid_api_key"
        assert response.json()["error"]["type"] == "authentication_error"
        assert response.headers["www-authenticate"] == "Bearer"
    assert guarded.get("/healthz", headers=sent).status_code == 200


def test_each_key_has_a_rate_of_its_own(guarded: Served) -> None:
    found = [guarded.post("/v1/answers", ASKED, headers=bearer(KEY)) for _ in range(26)]
    codes = [response.status_code for response in found]
    assert codes[:20] == [200] * 20
    assert codes[-1] == 429
    refused = found[-1]
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert guarded.post("/v1/answers", ASKED, headers=bearer(OTHER)).status_code == 200
    assert guarded.get("/metrics", headers=bearer(KEY)).status_code == 200, "those who watch are not limited"


def test_whoever_tries_keys_is_slowed_down_and_those_with_a_key_are_not(run: RunDirectory) -> None:
    with serving(run.path, {"per_minute": 3}, keys=frozenset({KEY})) as served:
        paths = ("/v1/models", "/metrics", "/v1/nothing", "/v1/models", "/metrics")
        found = [served.get(path, headers=bearer(f"{number}" * 32)) for number, path in enumerate(paths)]
        assert [response.status_code for response in found] == [401] * 3 + [429] * 2
        assert found[-1].json()["error"]["code"] == "rate_limit_exceeded"
        assert int(found[-1].headers["retry-after"]) >= 1
        assert served.get("/v1/models", headers=bearer(KEY)).status_code == 200
        assert served.get("/healthz").status_code == 200


def test_a_model_whose_thread_has_ended_is_told_at_once(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(run.path) as served:
        assert served.get("/healthz").status_code == 200

        def fail(*given: object) -> None:
            raise SystemError("a defect")

        monkeypatch.setattr(served.model.generator, "_admit", fail)
        for _ in range(2):  # the one that meets the defect, and one that comes later
            refused = served.post("/v1/answers", ASKED)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "model_ended")
        health = served.get("/healthz")
        assert (health.status_code, health.json()["status"]) == (503, "the model does not run any more")


def test_a_rate_fills_up_again_and_remembers_a_limited_number_of_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    rate = Rate(60)
    assert [rate.take("a") for _ in range(60)] == [0.0] * 60
    assert rate.take("a") == pytest.approx(1.0)
    assert rate.take("b") == 0.0
    now = 2.0
    assert [rate.take("a") == 0.0 for _ in range(3)] == [True, True, False]
    for client in range(10_000):
        rate.take(str(client))
    assert len(rate._buckets) <= 4096


def test_a_body_that_is_too_large_is_refused_whether_its_length_is_told_or_not(guarded: Served) -> None:
    large = b" " * 5000

    def pieces() -> Iterator[bytes]:
        yield from (large[:900],) * 6

    for content in (large, pieces()):
        response = guarded.client.post("/v1/answers", content=content, headers=bearer(OTHER))
        assert response.status_code == 413
        assert response.json()["error"]["message"] == "the body has more than 1,000 bytes"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "https://elsewhere.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://[", "Host": "localhost"}, 403),
        ({"Host": "elsewhere.example"}, 403),
        ({"Host": "["}, 403),
        ({"Host": "localhost:1", "Origin": "http://localhost:1"}, 200),
        ({"Host": "[::1]:80"}, 200),
        ({}, 200),
    ],
)
def test_pages_of_other_sites_are_not_answered(served: Served, headers: dict[str, str], status: int) -> None:
    """Neither a page that a browser has open, nor one whose name has been made to mean this machine."""
    response = served.post("/v1/answers", ASKED, headers=headers)
    assert response.status_code == status, response.text
    assert response.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    ("text", "mode", "words"),
    [
        (KEY, 0o640, "others can read it"),
        ("", 0o600, "expected one key on each line"),
        ("short", 0o600, "16 ASCII characters"),
        (f"{KEY}\n{'é' * 20}", 0o600, "16 ASCII characters"),
        (None, 0o600, "cannot be read"),
    ],
)
def test_a_bad_file_of_keys_is_refused(tmp_path: Path, text: str | None, mode: int, words: str) -> None:
    path = tmp_path / "keys"
    if text is not None:
        path.write_text(text, encoding="utf-8")
        path.chmod(mode)
    with pytest.raises(ConfigError, match=words):
        read_keys(path)


def test_a_file_of_keys_has_one_on_each_line(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"{KEY}\n\n{OTHER}\n")
    path.chmod(0o600)
    assert read_keys(path) == {KEY, OTHER}


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        *(("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("[::1]", True), ("localhost", True)),
        *(("0.0.0.0", False), ("::", False), ("10.0.0.1", False), ("localhost.example", False), ("", False)),
    ],
)
def test_loopback_is_this_machine_alone(host: str, expected: bool) -> None:
    assert is_loopback(host) == expected


def test_curl_needs_no_headers_and_prometheus_reads_the_counters(run: RunDirectory) -> None:
    with serving(run.path) as served:
        body = '{"task": "mini.woz", "context": "a"}'
        for path, expected in (("/v1/answers", "200"), ("/v1/none", "404"), ("/v1/answers/x", "404")):
            done = subprocess.run(
                ["curl", "-s", "-w", "%{http_code}", "-d", body, f"{served.address}{path}"],
                capture_output=True,
                text=True,
                check=True,
            )
            assert done.stdout.endswith(expected)
        page = served.get("/metrics")
        assert page.headers["content-type"].startswith("text/plain")
        samples = [sample for family in text_string_to_metric_families(page.text) for sample in family.samples]
        values = {(sample.name, *sorted(sample.labels.values())): sample.value for sample in samples}
        assert values["ray_l4_requests_total", "/v1/answers", "200", "POST"] == 1
        assert values["ray_l4_requests_total", "404", "any", "none"] == 2, "unknown paths are one"
        assert values["ray_l4_request_seconds_count", "/v1/answers"] == 1
        assert values["ray_l4_served_stage",] == 1
        assert values["ray_l4_served_student",] == served.model.checkpoint.student
        assert values["ray_l4_queue_length",] == 0
        assert values["ray_l4_requests_in_progress",] == 1, "this one"
        assert values["ray_l4_swaps_total",] == values["ray_l4_failed_loads_total",] == 0
        assert values["ray_l4_tokens_total", "prompt"] > 0
        assert values["ray_l4_tokens_total", "generated"] == values["ray_l4_batch_rows_sum",] > 0
