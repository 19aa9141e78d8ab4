"""The logs of a run: lines of workers and of the coordinator, each in the file of its logger."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from ray_l4.cluster.spawn import LocalSpawner
from ray_l4.run.coordinator import Coordinator, new_context
from ray_l4.run.run_log import RunLog, logging_to
from ray_l4.store.run_directory import RunDirectory
from ray_l4.workers.log import DEBUG_VARIABLE, LOGGERS, LogBuffer, LogLine
from tests.run import run_fixtures as small

FILES = ("coordinator.log", "exchange.log", "learner.log")


def texts(path: Path) -> list[str]:
    """The messages of a log file, without time and process."""
    return [line.rpartition("] ")[2] for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(autouse=True)
def no_debugging(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DEBUG_VARIABLE, raising=False)


def test_lines_of_workers_are_added_to_the_file_of_their_logger(tmp_path: Path) -> None:
    log = RunLog(RunDirectory(tmp_path))
    log.add([LogLine("ray_l4.learner", "one"), LogLine("ray_l4.exchange", "two"), LogLine("ray_l4.learner", "three")])
    log.add([])
    log.add([LogLine("ray_l4.learner", "four"), LogLine("ray_l4.coordinator", "five – ü")])
    assert (tmp_path / "logs" / "learner.log").read_text(encoding="utf-8") == "one\nthree\nfour\n"
    assert (tmp_path / "logs" / "exchange.log").read_text(encoding="utf-8") == "two\n"
    assert (tmp_path / "logs" / "coordinator.log").read_text(encoding="utf-8") == "five – ü\n"


def test_lines_that_a_worker_buffered_land_in_the_run_s_logs(tmp_path: Path) -> None:
    """As on Ray, where the coordinator fetches them."""
    buffer = LogBuffer.attached()
    try:
        for name in LOGGERS:
            logging.getLogger(name).info("a line of %s", name)
    finally:
        for name in LOGGERS:
            logging.getLogger(name).removeHandler(buffer)
    RunLog(RunDirectory(tmp_path)).add(buffer.take())
    assert sorted(path.name for path in (tmp_path / "logs").iterdir()) == sorted(FILES)
    for name in LOGGERS:
        assert texts(tmp_path / "logs" / f"{name.removeprefix('ray_l4.')}.log") == [f"a line of {name}"]


def test_lines_of_this_process_go_to_the_run_s_logs_while_it_runs(tmp_path: Path) -> None:
    logger = logging.getLogger("ray_l4.learner")
    with logging_to(RunDirectory(tmp_path)):
        logger.info("within")
        logger.debug("a step")
    logger.warning("after it")
    assert texts(tmp_path / "logs" / "learner.log") == ["within"]


def test_with_the_variable_set_every_step_is_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_L4_DEBUG", "1")
    with logging_to(RunDirectory(tmp_path)):
        logging.getLogger("ray_l4.exchange").debug("a step")
    assert texts(tmp_path / "logs" / "exchange.log") == ["a step"]


@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_handlers_are_removed_and_closed_however_it_ends(tmp_path: Path, error: type[BaseException] | None) -> None:
    before = {name: list(logging.getLogger(name).handlers) for name in LOGGERS}
    settings = {name: (logging.getLogger(name).level, logging.getLogger(name).propagate) for name in LOGGERS}
    assert all(propagates for _, propagates in settings.values()), "no earlier run left them otherwise"
    added: list[logging.FileHandler] = []

    def run() -> None:
        with logging_to(RunDirectory(tmp_path)):
            for name in LOGGERS:
                own = [handler for handler in logging.getLogger(name).handlers if handler not in before[name]]
                assert len(own) == 1 and isinstance(own[0], logging.FileHandler)
                assert not logging.getLogger(name).propagate, "lines go nowhere else meanwhile"
                added.extend(own)
            if error is not None:
                raise error

    if error is None:
        run()
    else:
        with pytest.raises(error):
            run()
    assert {name: logging.getLogger(name).handlers for name in LOGGERS} == before
    assert {name: (logging.getLogger(name).level, logging.getLogger(name).propagate) for name in LOGGERS} == settings
    assert len(added) == 3 and all(handler.stream is None for handler in added)


def test_a_resumed_run_adds_to_its_logs(tmp_path: Path) -> None:
    for line in ("first", "second"):
        with logging_to(RunDirectory(tmp_path)):
            logging.getLogger("ray_l4.coordinator").info(line)
    assert texts(tmp_path / "logs" / "coordinator.log") == ["first", "second"]


def test_a_run_in_one_process_logs_its_stages(tmp_path: Path) -> None:
    run, _ = small.complete_run(
        small.quick("l4", training={"epochs": 1, "batch_size": 8}), small.cluster("in_process"), tmp_path / "run"
    )
    assert sorted(path.name for path in (run.path / "logs").iterdir()) == sorted(FILES)
    begun = texts(run.log("learner"))
    for student in range(2):
        assert sum(line.startswith(f"student {student}, stage 0: 40 examples") for line in begun) == 1
        assert sum(line.startswith(f"student {student}, stage 1: ") for line in begun) == 1
    coordinator = texts(run.log("coordinator"))
    assert coordinator[0].endswith(": l4")
    assert [line for line in coordinator if line.startswith("stages done")] == [
        "stages done: 1 of 2",
        "stages done: 2 of 2",
    ]


def test_a_run_that_fails_logs_the_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("ray_l4.run.epoch_figures.write_steps", full)
    profile = small.cluster("in_process")
    setup, run = small.new_run(small.quick("lamol"), profile, tmp_path / "run")
    with pytest.raises(OSError, match="disk full"):
        Coordinator(new_context(setup, profile, run), LocalSpawner, 1).run()
    log = run.log("coordinator").read_text(encoding="utf-8")
    assert "ERROR" in log and "the run ended early: disk full" in log
    assert "Traceback (most recent call last):" in log


def test_a_run_that_is_stopped_logs_no_error(tmp_path: Path) -> None:
    _, run = small.stopped_run(small.quick("lamol"), tmp_path / "run", "learning mini.rest")
    log = run.log("coordinator").read_text(encoding="utf-8")
    assert "ray-l4 resume" in log
    assert "ERROR" not in log and "Traceback" not in log


def test_lines_for_which_the_disk_has_no_room_are_dropped_without_a_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """``logging`` would print the traceback of each, and the file could not be closed."""
    (tmp_path / "logs").mkdir()
    for name in FILES:
        (tmp_path / "logs" / name).symlink_to("/dev/full")
    with logging_to(RunDirectory(tmp_path)):
        logging.getLogger("ray_l4.learner").warning("a line")
    assert capsys.readouterr().err == ""
