"""The log of what a command printed, with warnings of libraries and the error that ended it."""

from __future__ import annotations

import io
import logging
import warnings
from pathlib import Path

import pytest
from rich.console import Console

from ray_l4.errors import ConfigError
from ray_l4.run.command_log import CommandLog


def lines_of(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def test_lines_from_before_the_file_are_kept_and_later_ones_added(tmp_path: Path) -> None:
    shown, path = io.StringIO(), tmp_path / "logs" / "command.log"
    with CommandLog(Console(file=shown, width=20), "ray-l4 run x.yaml") as log:
        log.say("before: a long line that a terminal would break, with [markup] and größe")
        assert not path.exists()
        log.keep_in(path)
        log.say("after")
        assert lines_of(path)[-1] == "after", "written at once"
    first, *others = lines_of(path)
    assert first.startswith("# 20") and first.endswith(" ray-l4 run x.yaml")
    assert others == shown.getvalue().splitlines()
    assert others == ["before: a long line that a terminal would break, with [markup] and größe", "after"]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ConfigError("a key is unknown"), "error: a key is unknown"),
        (OSError("gone"), "error: gone"),
        (ZeroDivisionError("a defect"), "ZeroDivisionError: a defect"),
        (KeyboardInterrupt(), "stopped"),
    ],
)
def test_the_error_that_ends_the_command_is_the_end_of_the_log(
    tmp_path: Path, error: BaseException, words: str
) -> None:
    with pytest.raises(type(error)), CommandLog(Console(quiet=True), "test") as log:
        log.keep_in(tmp_path / "log")
        raise error
    text = (tmp_path / "log").read_text(encoding="utf-8")
    assert text.rstrip().endswith(words)
    assert ("Traceback" in text) == isinstance(error, ZeroDivisionError)


def test_warnings_are_kept_and_still_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    showwarning = warnings.showwarning
    with CommandLog(Console(quiet=True), "test") as log:
        log.keep_in(tmp_path / "log")
        logging.getLogger("some.library").warning("3 records left out")
        logging.getLogger("some.library").info("nothing")
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("an old way", FutureWarning, stacklevel=1)
    assert lines_of(tmp_path / "log")[1:] == ["warning: 3 records left out", "FutureWarning: an old way"]
    assert "3 records left out" in capsys.readouterr().err
    assert logging.getLogger().handlers == []
    assert warnings.showwarning is showwarning


def test_a_disk_without_room_for_the_log_ends_nothing(tmp_path: Path) -> None:
    (tmp_path / "log").symlink_to("/dev/full")
    with CommandLog(Console(quiet=True), "test") as log:
        log.keep_in(tmp_path / "log")
        log.say("a line")


def test_no_secret_is_kept_wherever_it_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "s3cret-of-16-letters")
    path = tmp_path / "log"
    with pytest.raises(OSError), CommandLog(Console(quiet=True), "resume s3://me:s3cret@b/x") as log:
        log.keep_in(path)
        log.say("key s3cret-of-16-letters")
        logging.getLogger("other").warning("again s3cret-of-16-letters")
        raise OSError("cannot read s3://me:s3cret@b/x")
    text = path.read_text(encoding="utf-8")
    assert "s3cret" not in text and text.count("***") == 4
