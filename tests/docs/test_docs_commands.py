"""Every command of README.md, CONTRIBUTING.md and docs/ runs once, in a fresh copy of the project.

Exit codes and files count, figures do not. The experiments are made smaller first, unless ``--full`` is given
(``launch/check_docs.sh --full``).
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from ray_l4.cli.main import app
from tests.docs import docs_pages
from tests.docs.docs_pages import REPOSITORY, Block

COMMANDS = [block for block in docs_pages.blocks() if block.language == "bash" or block.is_program]
FULL_LIMIT, LIMIT = 3600, 240

_WRAPPER = """#!/usr/bin/env bash
PYTHONPATH={clone} exec {python} {arguments} "$@"
"""
_PROGRAMS = {"python": "", "ray-l4": "-S -E {clone}/tests/docs/preloaded.py {socket} run", "pip": "-m pip"}
SMALLER_TASKS = {"train": 24, "test": 6}


class Clone:
    """A copy of the project's files, with an environment in which it is installed."""

    def __init__(self, folder: Path, full: bool) -> None:
        self.root, self.venv, self._full = folder / "ray_l4", folder / "venv", full
        self._socket = folder / "socket"
        ignored = [line.rstrip("/") for line in (REPOSITORY / ".gitignore").read_text(encoding="utf-8").split()]
        shutil.copytree(REPOSITORY, self.root, symlinks=True, ignore=shutil.ignore_patterns(".git", *ignored))
        self._install()
        if not full:
            self._make_smaller("quickstart.yaml")
            self._make_smaller("quickstart-four-peers.yaml")

    def _install(self) -> None:
        """Provide the programs that an installation would, and the stamp by which launch/lib.sh recognises it."""
        (self.venv / "bin").mkdir(parents=True)
        places = {"clone": shlex.quote(str(self.root)), "socket": shlex.quote(str(self._socket))}
        for name, arguments in _PROGRAMS.items():
            program = self.venv / "bin" / name
            program.write_text(_WRAPPER.format(python=sys.executable, arguments=arguments.format(**places), **places))
            program.chmod(0o755)
        wanted = 'source launch/lib.sh; printf "%s\\n" "$(cksum <pyproject.toml)  $ROOT" >"$VENV/.ray-l4-installed"'
        subprocess.run(["bash", "-c", wanted], cwd=self.root, env=self._environment(), check=True)

    def _make_smaller(self, name: str) -> None:
        path = self.root / "launch" / "experiments" / name
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
        for task in settings["stream"]:
            task.update(SMALLER_TASKS)
        settings["model"]["from_scratch"].update(layers=1, width=32)
        path.write_text(yaml.safe_dump(settings), encoding="utf-8")

    def _environment(self) -> dict[str, str]:
        return os.environ | {
            "PATH": f"{self.venv / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "RAY_L4_VENV": str(self.venv),
            "COLUMNS": "200",
        }

    @contextmanager
    def serving(self) -> Iterator[Clone]:
        """Keep the libraries of ``ray-l4`` loaded, those of the copy."""
        command = [sys.executable, "-m", "tests.docs.preloaded", str(self._socket)]
        environment = self._environment() | {"PYTHONPATH": str(self.root)}
        with subprocess.Popen(
            command, cwd=self.root, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as server:
            assert server.stdout is not None
            assert server.stdout.readline() == b"ready\n"
            yield self

    def run(self, script: str) -> subprocess.CompletedProcess[str]:
        """Run commands at the root of the copy."""
        return subprocess.run(
            ["bash", "-c", script],
            cwd=self.root,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=FULL_LIMIT if self._full else LIMIT,
            check=False,
        )


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Clone]:
    with Clone(tmp_path_factory.mktemp("docs"), request.config.option.full).serving() as clone:
        yield clone


def _name(block: Block) -> str:
    return f"{block.page}:{block.line}"


@pytest.mark.end_to_end
@pytest.mark.timeout(FULL_LIMIT)
@pytest.mark.parametrize("block", COMMANDS, ids=_name)
def test_commands_run_as_a_reader_would_run_them(
    block: Block, clone: Clone, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule = docs_pages.rule_of(block)
    script = docs_pages.script_of(block)
    if rule.data:
        monkeypatch.setenv("RAY_L4_DATA", str(request.getfixturevalue("shared_data")))
    if rule.not_run:
        assert clone.run(f"bash -n <<'END_OF_BLOCK'\n{block.text}END_OF_BLOCK\n").returncode == 0
        return
    result = clone.run(script)
    said = f"{script}\n{result.stdout}\n{result.stderr}"
    assert result.returncode == rule.code, said
    for pattern in rule.files:
        found = [path for path in clone.root.glob(pattern) if path.stat().st_size > 0]
        assert found, f"no {pattern} after\n{said}"


def test_every_rule_is_of_one_block() -> None:
    for rule in docs_pages.rules():
        named = [block for block in COMMANDS if block.page == rule.page and rule.contains in block.text]
        assert len(named) == 1, f"{rule.page}: {len(named)} blocks contain {rule.contains!r}"


def test_blocks_of_commands_are_marked_as_such() -> None:
    unmarked = [
        f"{_name(block)} {line}"
        for block in docs_pages.blocks()
        for line in block.text.splitlines()
        if not block.language and line.startswith(tuple(f"{program} " for program in docs_pages.PROGRAMS))
    ]
    assert unmarked == []


def _options(words: list[str]) -> tuple[str, set[str]]:
    """Return the command that the words call, and the options it has."""
    command: Any = typer.main.get_command(app)
    path = ["ray-l4"]
    for word in words:
        if not (commands := getattr(command, "commands", None)):
            break
        assert word in commands, f"there is no command {' '.join([*path, word])}"
        command = commands[word]
        path.append(word)
    return " ".join(path), {
        name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)
    }


@pytest.mark.parametrize(("page", "text"), docs_pages.inline_commands(), ids=lambda part: part)
def test_commands_within_sentences_exist_with_their_options(page: str, text: str) -> None:
    words = [word.strip("[]()") for word in text.removeprefix("ray-l4 ").split()]
    command, options = _options([word for word in words if word != "--debug"])
    for word in words:
        if word.startswith("--") and word != "--debug":
            assert word.partition("=")[0] in options | {"--help"}, f"{page}: {command} has no {word}"
