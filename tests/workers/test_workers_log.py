"""Log lines of a worker: kept until they are fetched, and not for ever."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import pytest

from ray_l4.workers import log as log_module
from ray_l4.workers.log import DEBUG_VARIABLE, LOGGERS, LogBuffer, log_level


@pytest.fixture
def buffer(monkeypatch: pytest.MonkeyPatch) -> Iterator[LogBuffer]:
    """A buffer that is attached as in a worker's process, and removed afterwards."""
    monkeypatch.delenv(DEBUG_VARIABLE, raising=False)
    own = LogBuffer.attached()
    yield own
    detach(own)


def detach(buffer: LogBuffer) -> None:
    for name in LOGGERS:
        logging.getLogger(name).removeHandler(buffer)


def test_lines_of_every_logger_are_kept_in_order_until_they_are_taken(buffer: LogBuffer) -> None:
    for number, name in enumerate(LOGGERS):
        logging.getLogger(name).info("line %d", number)
    logging.getLogger("ray_l4.other").error("of no interest")
    lines = buffer.take()
    assert [line.logger for line in lines] == list(LOGGERS)
    for number, line in enumerate(lines):
        assert line.text.endswith(f" INFO [{os.getpid()}] line {number}")
        assert line.text[:4].isdigit(), "it begins with the time"
    assert buffer.take() == []
    logging.getLogger(LOGGERS[0]).warning("later")
    assert [line.text.rpartition("] ")[2] for line in buffer.take()] == ["later"]


def test_a_line_carries_its_traceback(buffer: LogBuffer) -> None:
    try:
        raise ZeroDivisionError("division by zero")
    except ZeroDivisionError as error:
        logging.getLogger("ray_l4.learner").error("it failed", exc_info=error)
    (line,) = buffer.take()
    assert "it failed\nTraceback (most recent call last):" in line.text
    assert line.text.endswith("ZeroDivisionError: division by zero")


def test_only_the_newest_lines_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that nobody asks does not fill its memory."""
    monkeypatch.setattr(log_module, "_MOST_LINES", 3)
    own = LogBuffer.attached()
    try:
        for number in range(10):
            logging.getLogger("ray_l4.learner").info("line %d", number)
    finally:
        detach(own)
    assert [line.text[-6:] for line in own.take()] == ["line 7", "line 8", "line 9"]


def test_a_worker_keeps_a_bounded_number_of_lines() -> None:
    own = LogBuffer()
    record = logging.LogRecord("ray_l4.learner", logging.INFO, "", 0, "line", None, None)
    for _ in range(log_module._MOST_LINES + 5):
        own.emit(record)
    assert len(own.take()) == log_module._MOST_LINES == 10_000


@pytest.mark.parametrize(
    ("value", "level"),
    [(None, logging.INFO), ("", logging.INFO), ("0", logging.INFO), ("1", logging.DEBUG), ("yes", logging.DEBUG)],
)
def test_every_step_is_logged_only_if_the_variable_is_set(
    monkeypatch: pytest.MonkeyPatch, value: str | None, level: int
) -> None:
    if value is None:
        monkeypatch.delenv("RAY_L4_DEBUG", raising=False)
    else:
        monkeypatch.setenv("RAY_L4_DEBUG", value)
    assert log_level() == level
    own = LogBuffer.attached()
    try:
        logging.getLogger("ray_l4.learner").debug("a step")
        logging.getLogger("ray_l4.learner").info("a stage")
    finally:
        detach(own)
    expected = ["a step", "a stage"] if level == logging.DEBUG else ["a stage"]
    assert [line.text.rpartition("] ")[2] for line in own.take()] == expected


def test_a_line_and_its_traceback_carry_no_secret(buffer: LogBuffer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVICE_TOKEN", "of-the-environment")
    try:
        raise ConnectionError("s3://me:of-the-address@bucket")
    except ConnectionError as error:
        logging.getLogger("ray_l4.learner").error("refused: of-the-environment", exc_info=error)
    (line,) = buffer.take()
    assert "refused: ***\n" in line.text and line.text.endswith("s3://me:***@bucket")
    assert "of-the-" not in line.text
