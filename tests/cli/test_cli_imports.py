"""The libraries that a command loads: a help text is not worth the seconds that PyTorch and Ray take to import."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import typer

from ray_l4.cli.main import app
from tests.cli.cli_fixtures import IN_PROCESS, QUICKSTART, REPOSITORY

HEAVY = (
    *("torch", "transformers", "ray", "pyarrow", "numpy", "peft", "accelerate", "tokenizers", "safetensors"),
    *("matplotlib", "tensorboard", "jinja2", "rouge_score", "nltk", "scipy", "sklearn", "pandas"),
)
NOTHING: frozenset[str] = frozenset()
ARROW = frozenset({"pyarrow", "numpy", "pandas"})
"""Arrow imports pandas, where it is installed, as soon as it makes an array."""
SWEEP = REPOSITORY / "launch" / "experiments" / "l4-table2.yaml"

REPORT_MODULES = """
import json, pathlib, sys
path, heavy, *commands = json.loads(sys.argv.pop(1))
loaded = lambda: [name for name in heavy if name in sys.modules]
"""
WRITE = "pathlib.Path(path).write_text(json.dumps(found))\n"
RUN_COMMANDS = """
from ray_l4.cli.main import main
found = []
for sys.argv in commands:
    try:
        main()
    except SystemExit as end:
        found.append((end.code or 0, loaded()))
"""
STUDENT_WITHOUT_LORA = """
from types import SimpleNamespace
from ray_l4.config.model import FromScratch, ModelConfig
from ray_l4.learner.models import blank_model, build_model, describe, load_bytes, to_bytes
import ray_l4.workers.evaluator, ray_l4.workers.student
config = ModelConfig(from_scratch=FromScratch(layers=1, width=8, heads=2, positions=8, vocabulary=300))
tokenizer = SimpleNamespace(size=300, eos=0)
model = build_model(config, tokenizer, seed=0)
load_bytes(blank_model(config, tokenizer, describe(model)), to_bytes(model))
"""


def reported(folder: Path, code: str, *arguments: object) -> Any:
    """Return what ``code`` leaves in ``found``, run in a fresh process with these arguments."""
    path = folder / "loaded.json"
    done = subprocess.run(
        [sys.executable, "-c", f"{REPORT_MODULES}{code}{WRITE}", json.dumps([str(path), HEAVY, *arguments])],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return json.loads(path.read_text())


def loaded_by(folder: Path, code: str) -> set[str]:
    """Return the heavy libraries that a fresh process has loaded at the end of ``code``."""
    return set(reported(folder, f"{code}found = loaded()\n"))


def results_of(folder: Path, commands: Sequence[Sequence[object]]) -> list[tuple[int, set[str]]]:
    """Run commands one after another in a fresh process. For each, return its exit status and all loaded so far."""
    found = reported(folder, RUN_COMMANDS, *(["ray-l4", *map(str, words)] for words in commands))
    return [(status, set(loaded)) for status, loaded in found]


def command_names(app: typer.Typer) -> Iterator[list[str]]:
    """Yield every command and group of commands, as the words that call it."""
    for command in app.registered_commands:
        assert command.callback is not None
        yield [command.name or command.callback.__name__]
    for group in app.registered_groups:
        assert group.name is not None and group.typer_instance is not None
        yield [group.name]
        yield from ([group.name, *words] for words in command_names(group.typer_instance))


def test_a_help_text_loads_nothing(tmp_path: Path) -> None:
    commands = [[], *command_names(app)]
    found = results_of(tmp_path, [[*words, "--help"] for words in commands])
    assert dict(zip(map(" ".join, commands), found, strict=True)) == {" ".join(w): (0, NOTHING) for w in commands}


COMMANDS: list[tuple[list[object], int]] = [
    (["--version"], 0),
    (["methods"], 0),
    (["data", "list"], 0),
    (["rnu"], 2),
    (["rescore", "none"], 5),
    (["run", "none.yaml"], 2),
    (["evaluate"], 2),
    (["evaluate", "./runs/none", "--task", "mini.sql"], 4),
    (["evaluate", "gpt2"], 4),
    (["evaluate", "gpt2", "--task", "own"], 4),
    (["evaluate", "gpt2", "--task", "mini.sql", "--device", "gpu"], 2),
    (["ask", ".", "--task", "mini.sql"], 4),
    (["generate", ".", "--task", "mini.sql"], 4),
    (["run", QUICKSTART, "--set", "optm.lr=1"], 2),
    (["run", QUICKSTART, "--set", "method=l5"], 2),
    (["run", QUICKSTART, "--set", "cluster.studnets.cpus=1"], 2),
    (["sweep", SWEEP, "--set", "optm.lr=1"], 2),
    (["sweep", SWEEP, "--methods", "l5"], 2),
    (["run", QUICKSTART, "--dry-run", "--cluster", IN_PROCESS], 0),
    (["run", QUICKSTART, "--dry-run", "--set", "cluster.students.cpus=0.25"], 0),
]
"""Commands that load nothing, and their exit status."""
COMMANDS_WITH_ARROW: list[tuple[list[object], int]] = [
    (["report", "none"], 5),
    (["table", "none"], 5),
    (["figure", "none", "--kind", "cost", "--out", "x.png"], 5),
    (["figure", "none", "--kind", "bars", "--out", "x.png"], 2),
    (["resume", "none"], 5),
    (["sweep", SWEEP, "--dry-run", "--cluster", IN_PROCESS, "--set", "cluster.students.threads=1"], 0),
    (["data", "show", "mini.sql"], 0),
]


@pytest.mark.parametrize(("commands", "allowed"), [(COMMANDS, NOTHING), (COMMANDS_WITH_ARROW, ARROW)])
def test_a_command_loads_no_more_than_it_uses(
    tmp_path: Path, commands: list[tuple[list[object], int]], allowed: frozenset[str]
) -> None:
    found = results_of(tmp_path, [words for words, _ in commands])
    for (words, status), (ended, loaded) in zip(commands, found, strict=True):
        assert ended == status, words
        assert loaded <= allowed, words


@pytest.mark.processes
def test_a_student_without_adapters_loads_no_peft(tmp_path: Path) -> None:
    loaded = loaded_by(tmp_path, STUDENT_WITHOUT_LORA)
    assert loaded.isdisjoint({"peft", "matplotlib", "tensorboard", "rouge_score", "nltk", "sklearn", "scipy"})


@pytest.mark.processes
def test_the_driver_and_the_coordinator_of_a_run_on_ray_load_no_pytorch(tmp_path: Path) -> None:
    loaded = loaded_by(tmp_path, "import ray_l4.run.coordinator, ray_l4.run.execute\n")
    assert loaded.isdisjoint({"torch", "peft", "matplotlib", "rouge_score", "nltk"})
