"""The libraries that a command loads: a help text is not worth the seconds that PyTorch and Ray take to import."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

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
import atexit, json, pathlib, sys
path, *heavy = json.loads(sys.argv.pop(1))
atexit.register(lambda: pathlib.Path(path).write_text(json.dumps([name for name in heavy if name in sys.modules])))
"""
RUN_MAIN = "sys.argv[0] = 'ray-l4'\nfrom ray_l4.cli.main import main\nmain()\n"
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


def loaded_by(folder: Path, code: str, *arguments: object) -> tuple[set[str], int]:
    """Return the heavy libraries that a fresh process has loaded when it ends, and its exit status."""
    path = folder / "loaded.json"
    request = json.dumps([str(path), *HEAVY])
    done = subprocess.run(
        [sys.executable, "-c", REPORT_MODULES + code, request, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return set(json.loads(path.read_text())), done.returncode


def command_names(app: typer.Typer) -> Iterator[list[str]]:
    """Yield every command and group of commands, as the words that call it."""
    for command in app.registered_commands:
        assert command.callback is not None
        yield [command.name or command.callback.__name__]
    for group in app.registered_groups:
        assert group.name is not None and group.typer_instance is not None
        yield [group.name]
        yield from ([group.name, *words] for words in command_names(group.typer_instance))


@pytest.mark.parametrize("words", [[], *command_names(app)], ids=" ".join)
def test_a_help_text_loads_nothing(tmp_path: Path, words: list[str]) -> None:
    assert loaded_by(tmp_path, RUN_MAIN, *words, "--help") == (NOTHING, 0)


@pytest.mark.parametrize(
    ("arguments", "status", "allowed"),
    [
        (["--version"], 0, NOTHING),
        (["methods"], 0, NOTHING),
        (["data", "list"], 0, NOTHING),
        (["rnu"], 2, NOTHING),
        (["run", "none.yaml"], 2, NOTHING),
        (["run", QUICKSTART, "--set", "optm.lr=1"], 2, NOTHING),
        (["run", QUICKSTART, "--set", "method=l5"], 2, NOTHING),
        (["run", QUICKSTART, "--set", "cluster.studnets.cpus=1"], 2, NOTHING),
        (["sweep", SWEEP, "--set", "optm.lr=1"], 2, NOTHING),
        (["sweep", SWEEP, "--methods", "l5"], 2, NOTHING),
        (["report", "none"], 5, ARROW),
        (["resume", "none"], 5, ARROW),
        (["run", QUICKSTART, "--dry-run", "--cluster", IN_PROCESS], 0, NOTHING),
        (["run", QUICKSTART, "--dry-run", "--set", "cluster.students.cpus=0.25"], 0, NOTHING),
        (["sweep", SWEEP, "--dry-run", "--cluster", IN_PROCESS, "--set", "cluster.students.threads=1"], 0, ARROW),
        (["data", "show", "mini.sql"], 0, ARROW),
    ],
    ids=lambda value: " ".join(str(word).rpartition("/")[2] for word in value) if isinstance(value, list) else None,
)
def test_a_command_loads_no_more_than_it_uses(
    tmp_path: Path, arguments: list[str], status: int, allowed: frozenset[str]
) -> None:
    loaded, found = loaded_by(tmp_path, RUN_MAIN, *arguments)
    assert found == status
    assert loaded <= allowed


def test_a_student_without_adapters_loads_no_peft(tmp_path: Path) -> None:
    loaded, status = loaded_by(tmp_path, STUDENT_WITHOUT_LORA)
    assert status == 0
    assert loaded.isdisjoint({"peft", "matplotlib", "tensorboard", "rouge_score", "nltk", "sklearn", "scipy"})


def test_the_driver_and_the_coordinator_of_a_run_on_ray_load_no_pytorch(tmp_path: Path) -> None:
    loaded, status = loaded_by(tmp_path, "import ray_l4.run.coordinator, ray_l4.run.execute\n")
    assert status == 0
    assert loaded.isdisjoint({"torch", "peft", "matplotlib", "rouge_score", "nltk"})
