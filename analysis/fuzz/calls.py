"""One input through the entry point of ``ray-l4``, in this process, with its output kept."""

from __future__ import annotations

import io
import os
import shutil
import sys
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import typer

import ray_l4
from analysis.fuzz.inputs import HERE, Input
from analysis.fuzz.mutations import Content, Instead

_PROJECT = Path(ray_l4.__file__).parent
_APPENDED = (".lock", ".lock.writer", "logs")
"""Files of a run directory that a command writes in place; all others are replaced, so that links to them are safe."""


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int | None
    """Its exit code; None if an exception left it."""
    error: str
    """The traceback, or else what it printed to standard error."""
    defect: str = ""
    """Class and place of the exception, by which failures of the same cause are counted together."""


def call(given: Input, folder: Path) -> Outcome:
    """Run an input in the empty ``folder``."""
    arguments = _written(given, folder)
    with ExitStack() as stack:
        errors = stack.enter_context(_process(arguments, given.stdin, folder))
        stack.enter_context(_stopped_before_training())
        from ray_l4.cli.main import main

        try:
            main()
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
            return Outcome(code, _text(errors))
        except BaseException as error:
            return Outcome(None, traceback.format_exc(), _place(error))
    return Outcome(0, _text(errors))


def _text(stream: io.TextIOWrapper) -> str:
    stream.flush()
    buffer = stream.buffer
    assert isinstance(buffer, io.BytesIO)
    return buffer.getvalue().decode("utf-8", errors="replace")


def _place(error: BaseException) -> str:
    """Return the class of an exception, and the last line of the project that it passed."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).is_relative_to(_PROJECT)]
    where = f"{Path(frames[-1].filename).relative_to(_PROJECT)}:{frames[-1].lineno}" if frames else "elsewhere"
    return f"{type(error).__name__} at {where}"


@contextmanager
def _process(arguments: list[str], stdin: bytes, folder: Path) -> Iterator[io.TextIOWrapper]:
    """Set up what belongs to a process as its start does, the strictness of its streams included; yield its stderr."""
    output, errors = (
        io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors=how) for how in ("strict", "backslashreplace")
    )
    given = io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8", errors="surrogateescape")
    before = Path.cwd()
    streams = patch.multiple(sys, argv=["ray-l4", *arguments], stdin=given, stdout=output, stderr=errors)
    with streams, patch.dict(os.environ, {"COLUMNS": "200"}):
        os.chdir(folder)
        try:
            yield errors
        finally:
            os.chdir(before)


@contextmanager
def _stopped_before_training() -> Iterator[None]:
    """End ``run`` and ``resume`` where workers would be started or a cluster joined."""

    def stop(*given: object) -> None:
        raise typer.Exit(0)

    with patch("ray_l4.run.execute._go", stop), patch("ray_l4.cluster.connection.connect", stop):
        yield


def _written(given: Input, folder: Path) -> list[str]:
    """Write the files of an input into ``folder``, and return its command line."""
    if given.base is not None:
        shutil.copytree(given.base, folder / "run", copy_function=_link, symlinks=True)
    for name, content in given.files.items():
        inside = (given.files.get(str(parent)) for parent in Path(name).parents)
        if not any(isinstance(around, Instead) for around in inside):  # what is damaged is not there any more
            _put(folder / name, content)
    return [argument.replace(HERE, str(folder)) for argument in given.arguments]


def _link(source: str, target: str) -> None:
    if any(part in _APPENDED for part in Path(source).parts[-2:]):
        shutil.copyfile(source, target)
    else:
        os.link(source, target)


def _put(path: Path, content: Content) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    match content:
        case bytes():
            path.write_bytes(content)
        case Instead.FOLDER:
            path.mkdir()
        case Instead.LOOP:
            path.symlink_to(path.name)
        case Instead.DANGLING:
            path.symlink_to("nothing-here")
