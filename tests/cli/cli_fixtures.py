"""The command line as a user calls it: in a process of its own, or for speed in this one."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
QUICKSTART = REPOSITORY / "launch" / "experiments" / "quickstart.yaml"
IN_PROCESS = REPOSITORY / "cluster_configs" / "in_process.yaml"
LIMIT = 240.0

PRELOADED = [
    *("ray_l4.cli.main", "ray_l4.cli.download", "ray_l4.methods", "ray_l4.sweep.trials", "ray_l4.setup.setup"),
    *("ray_l4.learner.learner", "ray_l4.learner.inspection", "ray_l4.report.markdown", "ray_l4.report.html.page"),
    *("ray_l4.tasks.prepare", "ray_l4.monitor.curves", "rouge_score.rouge_scorer", "peft"),
]
"""The libraries of most commands; not Ray, which reads its environment when it is imported."""
_LOADED = multiprocessing.get_context("forkserver")
_LOADED.set_forkserver_preload(PRELOADED)

SMALL = {
    "name": "small",
    "method": "l4",
    "stream": [{"name": "mini.woz", "train": 24, "test": 6}, {"name": "mini.rest", "train": 24, "test": 6}],
    "model": {"from_scratch": {"layers": 1, "width": 32, "heads": 2, "positions": 96, "vocabulary": 400}},
    "training": {"epochs": 1, "batch_size": 8},
    "optim": {"variant": "torch", "lr": 2.0e-3},
    "replay": {"ratio": 0.25, "max_length": 30},
    "evaluation": {"max_new_tokens": 6},
}


def write_experiment(folder: Path, **changes: object) -> Path:
    """Write an experiment file whose run takes seconds, and return its path."""
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump(SMALL | changes), encoding="utf-8")
    return path


def command(*arguments: object) -> list[str]:
    """Return the command that calls ``ray-l4`` with these arguments."""
    return [sys.executable, "-m", "ray_l4.cli", *map(str, arguments)]


def ray_l4(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command to its end in its own process, forked from one that has already loaded the libraries."""
    given = [str(argument) for argument in arguments]
    with tempfile.TemporaryDirectory() as folder:
        written = [Path(folder) / name for name in ("stdout", "stderr")]
        environment = os.environ | {"COLUMNS": "200"}
        process = _LOADED.Process(target=_main_with_files, args=(given, cwd or Path.cwd(), environment, written))
        process.start()
        process.join(LIMIT)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired(given, LIMIT)
        output, errors = (path.read_text(encoding="utf-8") for path in written)
    return subprocess.CompletedProcess(given, process.exitcode, output, errors)


class InThisProcess:
    """Runs commands in the process of the test, which need not load the libraries again and may substitute parts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys
        monkeypatch.setenv("COLUMNS", "200")

    def __call__(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        from ray_l4.cli.main import main

        given = [str(argument) for argument in arguments]
        self._monkeypatch.setattr("sys.argv", ["ray-l4", *given])
        self._capsys.readouterr()
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            with pytest.raises(SystemExit) as ended:
                main()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)  # main() installs its own
        output, errors = self._capsys.readouterr()
        return subprocess.CompletedProcess(given, int(ended.value.code or 0), output, errors)


def _main_with_files(arguments: list[str], cwd: Path, environment: dict[str, str], written: list[Path]) -> None:
    streams = [os.open(os.devnull, os.O_RDONLY), *(os.open(path, os.O_CREAT | os.O_WRONLY) for path in written)]
    main_of_child(arguments, str(cwd), environment, streams)


def main_of_child(arguments: list[str], cwd: str, environment: dict[str, str], descriptors: list[int]) -> None:
    """Run a command in a forked process, with its own standard input, output and error."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    for stream, descriptor in enumerate(descriptors):
        os.dup2(descriptor, stream)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.argv = ["ray-l4", *arguments]
    from ray_l4.cli.main import main

    try:
        main()
    finally:
        atexit._run_exitfuncs()  # Ray's: a forked process does not run them by itself


def refused(result: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """Assert that a command failed with this exit code and one error message with these words, and no traceback."""
    assert result.returncode == code, result.stderr
    assert result.stderr.count("error:") == 1, result.stderr
    assert "Traceback" not in result.stderr + result.stdout
    for word in words:
        assert word in result.stderr, f"{word!r} is not in: {result.stderr}"
