"""``ray-l4 bench exchange`` refuses impossible measurements at once, in one line."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_l4.cli.main import main


@pytest.fixture(autouse=True)
def _own_sigterm() -> Iterator[None]:
    """Restore the handler of SIGTERM, which the entry point replaces."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def refusal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *options: str) -> tuple[object, str]:
    """Return the exit status and the only line that was printed."""
    monkeypatch.setattr(sys, "argv", ["ray-l4", "bench", "exchange", *options])
    with pytest.raises(SystemExit) as ended:
        main()
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.strip().splitlines()
    assert line.startswith("error: ")
    return ended.value.code, line


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--peers", "1"), 2, "1 is not a number of students that teach each other"),
        (("--peers", "2,two"), 2, "two is not a number of students"),
        (("--peers", "2,,4"), 2, "--peers 2,,4: expected values separated by commas"),
        (("--codecs", "tpok"), 2, "no codec is called 'tpok'. Did you mean 'topk'?"),
        (("--transports", "object_store", "--codecs", "mean"), 2, "mean cannot be combined with any of the others"),
        (("--transports", "gloo"), 2, "no transport is called 'gloo'"),
        (("--precision", "float16", "--codecs", "topk"), 2, "set exchange.precision: float32"),
        (("--peers", "500", "--vocab", "1000000"), 6, "no room for 500 students"),
        (("--address", "127.0.0.1:1", "--codecs", "dense"), 6, "nothing answers at 127.0.0.1:1"),
        (("--spread", "--codecs", "dense"), 6, "each process takes a node of its own"),
        (("--gpus", "4000", "--codecs", "dense"), 6, "asks for 8000 GPU"),
    ],
)
def test_a_mistake_is_one_line(
    options: tuple[str, ...], code: int, words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found, line = refusal(capsys, monkeypatch, *options)
    assert (found, words in line) == (code, True), line


def test_an_unwritable_file_is_refused_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, line = refusal(capsys, monkeypatch, "--output", str(tmp_path / "nowhere" / "found.jsonl"))
    assert code == 2
    assert "found.jsonl: No such file or directory; choose a file" in line
