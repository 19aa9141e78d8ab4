"""The launch scripts, with a virtual environment whose programs only record their arguments."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPTS = [*sorted((REPOSITORY / "launch").glob("*.sh")), REPOSITORY / ".ci/run"]

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")

# Records its arguments; `-c` (the version check) must succeed.
RECORDER = '#!/usr/bin/env bash\n[[ $1 == -c ]] || echo "$(basename "$0") $*" >>"$LOG"\n'
MAKES_RUN = RECORDER + '[[ $1 != run ]] || mkdir -p "${@: -1}"\n'
FAILS = RECORDER + '[[ "$*" != *"$FAIL_AT"* ]]\n'


class Project:
    """A copy of the scripts, and a recording environment."""

    def __init__(self, root: Path) -> None:
        self.root, self.venv, self.log = root / "a project", root / "a venv", root / "log"
        self.temporary = root / "temporary"
        self.temporary.mkdir()
        shutil.copytree(REPOSITORY / "launch", self.root / "launch")
        (self.root / "pyproject.toml").write_text("[project]\n")
        (self.venv / "bin").mkdir(parents=True)
        for name, text in {"python": FAILS, "pip": RECORDER, "ray-l4": MAKES_RUN}.items():
            (self.venv / "bin" / name).write_text(text)
            (self.venv / "bin" / name).chmod(0o755)

    def run(self, script: str, *arguments: str, fail_at: str = "nothing") -> subprocess.CompletedProcess[str]:
        """Run a script from another folder."""
        with self.start(script, *arguments, fail_at=fail_at) as process:
            output, errors = process.communicate(timeout=60)
        return subprocess.CompletedProcess(process.args, process.returncode, output, errors)

    def start(self, script: str, *arguments: str, fail_at: str = "nothing") -> subprocess.Popen[str]:
        """Start a script in another folder."""
        places = {"RAY_L4_VENV": self.venv, "LOG": self.log, "FAIL_AT": fail_at, "TMPDIR": self.temporary}
        return subprocess.Popen(
            ["bash", str(self.root / "launch" / script), *arguments],
            env=os.environ | {name: str(place) for name, place in places.items()},
            cwd=self.log.parent,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # tests may run below nohup
        )

    def read(self) -> list[str]:
        """Return the commands that the environment has recorded."""
        return self.log.read_text().splitlines() if self.log.exists() else []

    def recorded(self) -> list[str]:
        """Return the commands that the environment recorded since the last call."""
        lines = self.read()
        self.log.unlink(missing_ok=True)
        return lines


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_syntax(script: Path) -> None:
    checked = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")
    if script.name != "lib.sh":  # which is sourced
        assert os.access(script, os.X_OK)
        assert "\nset -euo pipefail\n" in script.read_text()


def test_installs_when_the_metadata_changes_and_only_then(project: Project) -> None:
    install = f"python -m pip install --disable-pip-version-check --editable {project.root}[dev]"
    for change, expected in [("", [install]), ("", []), ("name = 'x'\n", [install]), ("", [])]:
        with (project.root / "pyproject.toml").open("a") as file:
            file.write(change)
        assert project.run("test.sh").returncode == 0
        assert [line for line in project.recorded() if "pip" in line] == expected


def test_a_failed_installation_is_tried_again(project: Project) -> None:
    assert project.run("test.sh", fail_at="pip install").returncode != 0
    assert len(project.recorded()) == 1  # nothing ran after it
    assert project.run("test.sh").returncode == 0
    assert any("pip install" in line for line in project.recorded())


@pytest.mark.parametrize("arguments", ["", "--quick", "tests/config -x"])
def test_checks_run_in_order_and_stop_at_the_first_failure(project: Project, arguments: str) -> None:
    checks = [
        "-m ruff check",
        "-m ruff format --check",
        "-m mypy",
        f"-m pytest -n 2 --dist loadgroup {arguments}".rstrip(),
    ]
    assert project.run("test.sh", *arguments.split()).returncode == 0
    assert project.recorded()[1:] == [f"python {check}" for check in checks]
    assert project.run("test.sh", fail_at="format").returncode != 0
    assert project.recorded() == ["python -m ruff check", "python -m ruff format --check"]


RUN = "ray-l4 run launch/experiments/quickstart.yaml --set seed={seed} --set method={method} --cluster {profile}"
PROFILES = {"finetune": "cluster_configs/in_process.yaml", "l4": "cluster_configs/laptop.yaml"}


def test_quickstart_runs_both_methods_and_compares_them_in_runs(project: Project) -> None:
    result = project.run("quickstart.sh", "--seed", "3")
    assert result.returncode == 0, result.stderr
    folders = {method: f"runs/quickstart-{method}-seed3" for method in PROFILES}
    *runs, report = project.recorded()[1:]
    assert sorted(runs) == sorted(  # side by side
        f"{RUN.format(seed=3, method=method, profile=profile)} --run-dir {folders[method]}"
        for method, profile in PROFILES.items()
    )
    assert report == f"ray-l4 report {folders['l4']} {folders['finetune']} --out runs/quickstart-seed3.html"
    assert re.search(r"^==> total: \d+ s$", result.stdout, re.MULTILINE)


@pytest.mark.parametrize("failing", PROFILES)
def test_quickstart_tells_which_method_failed(project: Project, failing: str) -> None:
    fails = MAKES_RUN + '[[ "$*" != *"$FAIL_AT"* ]] || { echo "this is why" >&2; exit 3; }\n'
    (project.venv / "bin" / "ray-l4").write_text(fails)
    result = project.run("quickstart.sh", fail_at=f"method={failing}")
    assert result.returncode == (1 if failing == "finetune" else 3)
    assert "this is why" in result.stdout + result.stderr
    assert not any("report" in line for line in project.recorded())


LASTS = (
    MAKES_RUN
    + """case " $* " in
  *"method=$FAIL_AT "*) until [[ -e $LOG.started ]]; do sleep 0.05; done; exit 3 ;;
  *" run "*)
    trap 'kill $!; echo "stopped $*" >>"$LOG"; exit 130' TERM INT
    touch "$LOG.started"
    sleep 60 &
    wait $! ;;
esac
"""
)
"""A run that goes on until it is stopped, but for one that fails when the other has begun."""


def temporary_files(project: Project) -> list[Path]:
    return list(project.temporary.iterdir())


def test_quickstart_stops_one_run_if_the_other_fails(project: Project) -> None:
    (project.venv / "bin" / "ray-l4").write_text(LASTS)
    assert project.run("quickstart.sh", fail_at="l4").returncode == 3
    assert [line.split("method=")[1].split()[0] for line in project.recorded() if line.startswith("stopped")] == [
        "finetune"
    ]
    assert temporary_files(project) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_quickstart_stops_both_runs_once_when_it_is_stopped(project: Project, number: signal.Signals) -> None:
    (project.venv / "bin" / "ray-l4").write_text(LASTS)
    with project.start("quickstart.sh") as process:
        deadline = time.monotonic() + 30
        while len([line for line in project.read() if " run " in line]) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.3)  # their traps are set right after they have recorded their arguments
        process.send_signal(number)
        assert process.wait(30) == (130 if number == signal.SIGINT else 143)
    stopped = [line.split("method=")[1].split()[0] for line in project.recorded() if line.startswith("stopped")]
    assert sorted(stopped) == ["finetune", "l4"]
    assert temporary_files(project) == []


@pytest.mark.parametrize("kept", ["quickstart-l4-seed0", "quickstart-finetune-seed0", "quickstart-seed0.html"])
def test_quickstart_again_keeps_the_first_results(project: Project, kept: str) -> None:
    (project.root / "runs" / kept).mkdir(parents=True)  # one of the three is enough
    result = project.run("quickstart.sh")
    assert result.returncode == 0
    assert f"runs/{kept} exists already and is kept" in result.stdout
    *_, one, other, report = project.recorded()
    suffix = re.search(r"runs/quickstart-(?:l4|finetune)-seed0(-\d{8}-\d{6})$", one)
    assert suffix
    folders = [f"runs/quickstart-{method}-seed0{suffix[1]}" for method in ("l4", "finetune")]
    assert {line.rsplit(maxsplit=1)[1] for line in (one, other)} == set(folders)
    assert report == f"ray-l4 report {' '.join(folders)} --out runs/quickstart-seed0{suffix[1]}.html"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seed"], "--seed expects a whole number, not ''"),
        (["--seed", "07"], "--seed expects a whole number, not '07'"),
        (["--speed", "1"], "unknown option '--speed'"),
    ],
)
def test_quickstart_refuses_invalid_options(project: Project, arguments: list[str], message: str) -> None:
    result = project.run("quickstart.sh", *arguments)
    assert (result.returncode, project.recorded()) == (1, [])
    assert message in result.stderr


def test_an_old_python_is_refused_with_a_remedy(project: Project, tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.mkdir()
    for name in ("python", "python3", "python3.11", "python3.12", "python3.13"):
        (old / name).write_text('#!/bin/bash\n[[ $1 == --version ]] && echo "Python 3.9.1"\n')
        (old / name).chmod(0o755)
    shutil.rmtree(project.venv)
    command = f'PATH="{old}:$PATH"; source "{project.root}/launch/lib.sh"; install_project'
    result = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        env=os.environ | {"RAY_L4_VENV": str(project.venv)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert "error: Python 3.11 or newer is needed; found Python 3.9.1." in result.stderr
    assert not project.venv.exists()


def test_a_broken_environment_is_named(project: Project) -> None:
    (project.venv / "bin/python").write_text("#!/bin/bash\nexit 1\n")
    result = project.run("test.sh")
    assert result.returncode == 1
    assert f"{project.venv} has no working Python 3.11 or newer. Delete that folder" in result.stderr


def test_the_check_on_a_gpu_goes_on_after_a_failure_and_names_it(project: Project) -> None:
    result = project.run("gpu_check.sh", "the results", fail_at="bench step")
    out = project.log.parent / "the results"
    assert result.returncode == 1
    assert result.stderr == "error: failed: step-small\n"
    *_, last = commands = project.recorded()
    assert [line.split()[2] for line in commands] == [
        "pytest",
        "analysis.benchmarks.papers",
        "analysis.benchmarks.papers",
        "ray_l4.cli",
        "ray_l4.cli",
    ]
    assert "--set cluster.exchange.transport=cuda_ipc" in last
    assert last.endswith(f"--run-dir {out}/cuda-ipc")
    assert {path.stem for path in out.glob("*.log")} == {"tests", "papers", "papers-compiled", "step-small", "cuda-ipc"}
    assert project.run("gpu_check.sh", "other results").returncode == 0
    again = project.run("gpu_check.sh", "the results")
    assert (again.returncode, again.stderr) == (2, "error: the results is not empty; choose a new folder\n")


@pytest.mark.parametrize("arguments", [[], ["--all"]])
def test_the_check_on_a_gpu_needs_a_folder(project: Project, arguments: list[str]) -> None:
    result = project.run("gpu_check.sh", *arguments)
    assert (result.returncode, project.recorded()) == (2, [])
    assert "expected the folder for the results" in result.stderr
