"""Launch scripts with recorded commands, and parsers for these commands."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from ray.dashboard.modules.job.cli import submit
from ray.scripts.scripts import start
from ray.scripts.symmetric_run import symmetric_run
from typer.testing import CliRunner

from ray_l4.cli.main import app
from ray_l4.cluster.placement import check_room
from ray_l4.config.cluster import ClusterConfig
from ray_l4.config.experiment import ExperimentConfig
from ray_l4.methods import graph_of

REPOSITORY = Path(__file__).resolve().parents[2]
QUICKSTART = "launch/experiments/quickstart.yaml"

_SEPARATOR = "\x1f"
# One write for each call, since a script may run several commands at once.
_RECORDER = r"""#!/usr/bin/env bash
line=$(printf '%s\x1f' "$(basename "$0")" "AUTH=${RAY_AUTH_MODE:-}" "ADDRESS=${RAY_ADDRESS:-}" "$@")
printf '%s\n' "$line" >>"$LOG"
"""


@dataclass(frozen=True)
class Call:
    """A command that a script called."""

    name: str
    auth: str
    """Value of RAY_AUTH_MODE."""
    address: str
    """Value of RAY_ADDRESS."""
    arguments: list[str]

    def after(self, word: str) -> list[str]:
        """Return the arguments that follow ``word``."""
        return self.arguments[self.arguments.index(word) + 1 :]


class Commands:
    """Substitutes for the commands that scripts call: they record their arguments and run a body from the test."""

    def __init__(self, root: Path, **bodies: str) -> None:
        self.root, self.log = root, root / "log"
        (root / "bin").mkdir()
        (root / "home").mkdir()
        for name in ("python", "ray", "ray-l4", *bodies):
            path = root / "bin" / name
            path.write_text(_RECORDER + bodies.get(name, ""), encoding="utf-8")
            path.chmod(0o755)

    def run(self, *command: object, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a script with these commands first on PATH, from a folder outside the repository."""
        process = self.start(*command, **variables)
        try:
            output, errors = process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        return subprocess.CompletedProcess(process.args, process.returncode, output, errors)

    def start(self, *command: object, **variables: str) -> subprocess.Popen[str]:
        """Start a script as ``run`` does, without waiting for it."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "SLURM_"))}
        places = {
            "LOG": str(self.log),
            "HOME": str(self.root / "home"),
            "PATH": f"{self.root / 'bin'}:{os.environ['PATH']}",
            "RAY_L4_VENV": str(self.root),
        }
        return subprocess.Popen(
            [str(word) for word in command],
            env=clean | places | variables,
            cwd=self.root,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def calls(self) -> list[Call]:
        """Return the calls since the last time, in order."""
        lines = self.log.read_text(encoding="utf-8").splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        calls = []
        for line in lines:
            name, auth, address, *arguments = line.split(_SEPARATOR)[:-1]
            calls.append(Call(name, auth.removeprefix("AUTH="), address.removeprefix("ADDRESS="), arguments))
        return calls

    def only_call(self, name: str) -> Call:
        """Return the only call of a command, and forget all calls."""
        (call,) = [call for call in self.calls() if call.name == name]
        return call

    def token(self) -> Path:
        """Create a token where Ray looks for one, and return its path."""
        path = self.root / "home" / ".ray" / "auth_token"
        path.parent.mkdir(exist_ok=True)
        path.write_text("0" * 64, encoding="utf-8")
        return path


@dataclass(frozen=True)
class Run:
    """The configuration that a ``ray-l4 run`` command resolves to."""

    experiment: ExperimentConfig
    cluster: ClusterConfig
    folder: str

    def fits(self, nodes: Sequence[Mapping[str, float]]) -> list[int]:
        """Return the node of each process. Raises ClusterError if there is no room."""
        return check_room(graph_of(self.experiment).size, self.cluster, nodes)


def resolved(call: Call) -> Run:
    """Resolve a recorded call of ``ray-l4 run`` with ``--dry-run``."""
    assert (call.name, call.arguments[0]) == ("ray-l4", "run")
    before = Path.cwd()
    os.chdir(REPOSITORY)
    try:
        result = CliRunner().invoke(app, [*call.arguments, "--dry-run"])
    finally:
        os.chdir(before)
    assert result.exit_code == 0, result.exception
    experiment, cluster = (
        yaml.safe_load(result.stdout.split(f"# {part}\n")[1].split("\n#")[0]) for part in ("experiment", "cluster")
    )
    return Run(
        ExperimentConfig.model_validate(experiment),
        ClusterConfig.model_validate(cluster),
        call.after("--run-dir")[0],
    )


def ray_start(arguments: Sequence[str]) -> dict[str, object]:
    """Parse the arguments of ``ray start`` with Ray's own parser, which refuses unknown ones."""
    return start.make_context("start", list(arguments)).params


def ray_symmetric_run(arguments: Sequence[str]) -> tuple[dict[str, object], dict[str, object], list[str]]:
    """Return the options of ``ray symmetric-run``, those it passes to ``ray start``, and the command."""
    at = list(arguments).index("--")
    params = symmetric_run.make_context("symmetric-run", list(arguments[:at])).params
    return params, ray_start(params["ray_args_and_entrypoint"]), list(arguments[at + 1 :])


def ray_job_submit(arguments: Sequence[str]) -> dict[str, object]:
    """Parse the arguments of ``ray job submit`` with Ray's own parser."""
    return submit.make_context("submit", list(arguments)).params


def words_of(command: str) -> list[str]:
    """Split a shell command into words."""
    return shlex.split(command)
