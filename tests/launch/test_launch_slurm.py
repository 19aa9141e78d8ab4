"""The SLURM scripts, with an ``srun`` and a ``scontrol`` that record their arguments."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from ray_l4.errors import ClusterError
from tests.launch.launch_fixtures import (
    QUICKSTART,
    REPOSITORY,
    Call,
    Commands,
    ray_start,
    ray_symmetric_run,
    resolved,
    words_of,
)

FOLDER = REPOSITORY / "launch" / "slurm"
SCRIPTS = ["exclusive", "shared"]
PROFILE = "cluster_configs/several_nodes.yaml"
FINISHES = 'mkdir -p "$RAY_L4_RUN_DIR"; touch "$RAY_L4_RUN_DIR/summary.json"\n'
# Stands for Ray on a node, which runs until it is killed, and for the wait for nodes, counted as calls of srun.
GOES_ON = '[[ " $* " == *" symmetric-run "* ]] || exec sleep 60\n' + FINISHES
WAITS = 'until (($(grep -c ^srun "$LOG") >= ${2:-0})); do sleep 0.05; done\n'


def options_of(script: str) -> dict[str, str]:
    """Return the options in the ``#SBATCH`` lines."""
    text = (FOLDER / f"{script}.sbatch").read_text(encoding="utf-8")
    found = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", text, re.MULTILINE))
    assert len(found) == text.count("\n#SBATCH")
    return found


class Slurm(Commands):
    """A job of two nodes with the options of the ``#SBATCH`` lines."""

    def submit(
        self, script: str, *arguments: str, job: int = 1234, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        return self.run(*self._batch(script, arguments), **(self._granted(script, job) | variables))

    def begin(self, script: str, *arguments: str) -> subprocess.Popen[str]:
        """Start a job without waiting for it."""
        return self.start(*self._batch(script, arguments), **self._granted(script, 1234))

    def _batch(self, script: str, arguments: Sequence[str]) -> list[object]:
        spooled = self.root / "slurm_script"
        shutil.copy(FOLDER / f"{script}.sbatch", spooled)
        return ["bash", spooled, *arguments]

    def _granted(self, script: str, job: int) -> dict[str, str]:
        options = options_of(script)
        return {
            "SLURM_JOB_ID": str(job),
            "SLURM_SUBMIT_DIR": str(REPOSITORY),
            "SLURM_JOB_NUM_NODES": options["nodes"],
            "SLURM_JOB_NODELIST": "node[1-2]",
            "SLURM_CPUS_PER_TASK": options["cpus-per-task"],
            "SLURM_GPUS_ON_NODE": options["gpus-per-node"],
            "RAY_L4_RUN_DIR": str(self.root / "run"),
            "RAY_L4_HEAD_ADDRESS": "192.0.2.1",
        }


@pytest.fixture
def slurm(tmp_path: Path) -> Slurm:
    return Slurm(tmp_path, srun=GOES_ON, python=WAITS, scontrol="printf 'node1\\nnode2\\n'\n")


@pytest.fixture(params=SCRIPTS)
def script(request: pytest.FixtureRequest) -> str:
    return request.param


def node_starts(output: str) -> list[list[str]]:
    """Return the arguments of the ``ray start`` commands that a dry run prints."""
    return [words_of(line.split(" ray start ")[1]) for line in output.splitlines() if " ray start " in line]


# --- both ---


def test_syntax(script: str) -> None:
    for path in (FOLDER / f"{script}.sbatch", FOLDER / "common.sh"):
        checked = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True, check=False)
        assert (checked.returncode, checked.stderr) == (0, "")
    assert os.access(FOLDER / f"{script}.sbatch", os.X_OK)


def test_the_reservation_has_room_for_the_profile(slurm: Slurm, script: str) -> None:
    """Run the command that the script prints, and resolve its run."""
    options = options_of(script)
    slurm.token()
    shown = slurm.submit(script, "--dry-run", QUICKSTART, PROFILE, "--set", "seed=5").stdout.splitlines()[-1]
    words = words_of(shown)
    assert slurm.run(*words[words.index("bash") :]).returncode == 0
    run = resolved(slurm.only_call("ray-l4"))
    assert (run.experiment.seed, run.cluster.ray.address, run.folder) == (5, "auto", str(slurm.root / "run"))
    node = {"CPU": float(options["cpus-per-task"]), "GPU": float(options["gpus-per-node"])}
    there = [node] * int(options["nodes"])
    assert set(run.fits(there)) == {0, 1}
    with pytest.raises(ClusterError):
        run.fits(there[:-1])


def test_a_job_may_be_requeued(script: str) -> None:
    options = options_of(script)
    assert "requeue" in options
    assert options["open-mode"] == "append"
    assert options["ntasks-per-node"] == "1"
    assert ("exclusive" in options) == (script == "exclusive")


def test_a_dry_run_prints_commands_and_runs_none(slurm: Slurm, script: str) -> None:
    for variables in ({}, {"SLURM_JOB_ID": "", "SLURM_JOB_NODELIST": ""}):  # the second is a login node
        result = slurm.submit(script, "--dry-run", QUICKSTART, PROFILE, **variables)
        assert result.returncode == 0, result.stderr
        assert result.stdout.startswith("srun --nodes=")
        assert f"launch/run_or_resume.sh {slurm.root}/run {QUICKSTART} --cluster {PROFILE}" in result.stdout
    assert {call.name for call in slurm.calls()} <= {"scontrol"}
    assert not (slurm.root / "home" / ".ray").exists()


def test_on_a_login_node_a_dry_run_shows_what_the_header_asks_for(slurm: Slurm, script: str) -> None:
    unknown = dict.fromkeys(
        ["SLURM_JOB_ID", "SLURM_JOB_NUM_NODES", "SLURM_JOB_NODELIST", "SLURM_CPUS_PER_TASK", "SLURM_GPUS_ON_NODE"], ""
    )
    shown = slurm.submit(script, "--dry-run", QUICKSTART, PROFILE, **unknown)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout == slurm.submit(script, "--dry-run", QUICKSTART, PROFILE, job=0, SLURM_JOB_NODELIST="").stdout
    assert "--num-gpus=1 " in shown.stdout and "--num-cpus=8 " in shown.stdout


def test_a_profile_of_the_project_goes_by_its_name(slurm: Slurm, script: str) -> None:
    result = slurm.submit(script, "--dry-run", QUICKSTART, "several_nodes")
    assert result.returncode == 0, result.stderr
    assert "--cluster several_nodes" in result.stdout


@pytest.mark.parametrize("files", [("no.yaml", PROFILE), (QUICKSTART, "no.yaml"), (QUICKSTART, "launch")])
@pytest.mark.parametrize("options", [["--dry-run"], []])
def test_files_that_do_not_exist_are_refused(
    slurm: Slurm, script: str, options: list[str], files: tuple[str, str]
) -> None:
    result = slurm.submit(script, *options, *files)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr in (f"error: {file}: no such file in {REPOSITORY}\n" for file in files)
    assert slurm.calls() == []


def test_the_cluster_uses_the_user_s_token(slurm: Slurm, script: str) -> None:
    slurm.submit(script, QUICKSTART, PROFILE)
    first, *rest = slurm.calls()
    assert first.arguments == ["get-auth-token", "--generate"], "generated if there is none"
    assert {call.auth for call in (first, *rest)} == {"token"}
    for variables in ({"RAY_AUTH_TOKEN": "0" * 64}, {"RAY_AUTH_TOKEN_PATH": str(slurm.token())}, {}):
        slurm.submit(script, QUICKSTART, PROFILE, **variables)
        calls = slurm.calls()
        assert {call.auth for call in calls} == {"token"}
        assert not [call for call in calls if "get-auth-token" in call.arguments], "not generated if there is one"


def test_a_missing_token_file_is_refused(slurm: Slurm, script: str) -> None:
    result = slurm.submit(script, QUICKSTART, PROFILE, RAY_AUTH_TOKEN_PATH="/no/such/file")
    assert (result.returncode, slurm.calls()) == (1, [])
    assert "error: RAY_AUTH_TOKEN_PATH: no such file: /no/such/file" in result.stderr


def test_wrong_use(slurm: Slurm, script: str) -> None:
    elsewhere = slurm.submit(script, QUICKSTART, PROFILE, SLURM_SUBMIT_DIR=str(slurm.root))
    assert elsewhere.returncode == 1
    assert f"error: {slurm.root} is not the repository; submit this script from there" in elsewhere.stderr
    unsubmitted = slurm.submit(script, QUICKSTART, PROFILE, SLURM_JOB_ID="")
    assert unsubmitted.returncode == 1
    assert "start this script with sbatch" in unsubmitted.stderr
    assert slurm.submit(script, QUICKSTART).returncode == 2
    assert slurm.calls() == []


# Stands for a run that takes half a second to keep its state, unless nobody warns it.
STOPS = """
trap 'echo "$1" >>"$HOME/warned"; sleep 0.5; echo "$1 ended" >>"$HOME/warned"; exit 130' {number}
touch "$HOME/runs"
for _ in {{1..400}}; do sleep 0.1; done
"""
# Runs the entrypoint of `ray symmetric-run` as a child, and dies of any signal; Ray on a node runs until it is killed.
SYMMETRIC = '[[ " $* " == *" symmetric-run "* ]] || exec sleep 60\nwhile [[ $1 != -- ]]; do shift; done\n"${@:2}"\n'


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM], ids=["SIGUSR1", "SIGTERM"])
def test_a_warning_reaches_the_run_and_the_job_ends_with_it(
    tmp_path: Path, script: str, number: signal.Signals
) -> None:
    """``sbatch --signal=B:USR1`` warns the batch shell alone, which would die of it, and the run with it."""
    bodies = {"srun": SYMMETRIC, "python": WAITS, "scontrol": "echo node1; echo node2\n"}
    slurm = Slurm(tmp_path, **bodies, **{"ray-l4": STOPS.format(number=number.name)})
    slurm.token()
    job = slurm.begin(script, QUICKSTART, PROFILE)
    while not (tmp_path / "home" / "runs").exists():
        assert job.poll() is None, job.communicate()
        time.sleep(0.02)
    job.send_signal(number)
    output, errors = job.communicate(timeout=30)
    assert (tmp_path / "home" / "warned").read_text().split() == ["run", "run", "ended"], "once, and waited for"
    assert job.returncode == 130, errors
    assert f"{number.name}: the run is asked to stop" in output


def test_slurm_is_asked_for_a_warning_before_the_time_limit(script: str) -> None:
    assert options_of(script)["signal"] == "B:USR1@120"


# --- whole nodes ---


def test_symmetric_run_starts_ray_everywhere_and_the_command_once(slurm: Slurm) -> None:
    slurm.token()
    assert slurm.submit("exclusive", QUICKSTART, PROFILE).returncode == 0
    call = slurm.only_call("srun")
    assert call.arguments[:4] == ["--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--cpus-per-task=8"]
    ray = call.arguments.index("ray")
    assert call.arguments[ray + 1] == "symmetric-run"
    own, start, entrypoint = ray_symmetric_run(call.arguments[ray + 2 :])
    assert (own["address"], own["min_nodes"]) == ("192.0.2.1:6379", 2)
    assert (start["num_cpus"], start["num_gpus"], start["dashboard_host"]) == (8, 1, "127.0.0.1")
    assert start["include_dashboard"] is None, "workers would refuse it"
    assert entrypoint[:2] == ["bash", str(REPOSITORY / "launch/run_or_resume.sh")]


@pytest.mark.parametrize(("ends", "code"), [("exit 0\n", 1), ("exit 7\n", 7)])
def test_a_run_without_a_result_is_a_failure_whatever_ray_returns(tmp_path: Path, ends: str, code: int) -> None:
    slurm = Slurm(tmp_path, srun=ends)
    slurm.token()
    result = slurm.submit("exclusive", QUICKSTART, PROFILE)
    assert result.returncode == code
    assert ("the run did not finish" in result.stderr) == (code == 1)


# --- shared nodes ---


def test_head_then_workers_then_the_command(slurm: Slurm) -> None:
    slurm.token()
    assert slurm.submit("shared", QUICKSTART, PROFILE).returncode == 0
    calls = {_kind(call): call for call in slurm.calls()}
    assert set(calls) == {"hosts", "srun on node1", "srun on node2", "wait for 1", "wait for 2", "command"}
    starts = [ray_start(calls[f"srun on node{node}"].after("start")) for node in (1, 2)]
    assert [start["head"] for start in starts] == [True, False]
    order = list(calls)
    # Concurrent commands are recorded in either order.
    assert max(order.index("srun on node1"), order.index("wait for 1")) < order.index("srun on node2")
    assert order[-1] == "command"
    head = calls.pop("srun on node1")
    calls.pop("hosts")
    assert head.address == "", "a head with an address would try to join it"
    assert {call.address for call in calls.values()} == {f"192.0.2.1:{10_000 + 1234 % 40 * 500}"}


def _kind(call: Call) -> str:
    names = {"scontrol": "hosts", "python": f"wait for {call.arguments[-1]}", "ray-l4": "command"}
    where = next((word.partition("=")[2] for word in call.arguments if word.startswith("--nodelist=")), "")
    return names.get(call.name, f"{call.name} on {where}")


def test_jobs_on_one_node_use_different_ports(slurm: Slurm) -> None:
    taken: set[int] = set()
    for job in (4000, 4001, 4039):
        head, worker = map(
            ray_start, node_starts(slurm.submit("shared", "--dry-run", QUICKSTART, PROFILE, job=job).stdout)
        )
        assert (head["head"], head["dashboard_host"], head["block"], worker["block"]) == (True, "127.0.0.1", True, True)
        assert worker["address"] == f"192.0.2.1:{head['port']}"
        for node in (head, worker):
            ports = [
                int(str(node[name])) for name in node if name.endswith("port") and node[name] and "worker" not in name
            ]
            workers = range(int(str(node["min_worker_port"])), int(str(node["max_worker_port"])) + 1)
            assert len(workers) == 480
            assert len({*ports, *workers}) == len(ports) + len(workers)
            assert not taken & {*ports, *workers}
            assert max(*ports, *workers) < 32_768
        taken |= {int(str(head["port"])), *range(int(str(head["port"])), int(str(head["port"])) + 500)}
    again = slurm.submit("shared", "--dry-run", QUICKSTART, PROFILE, job=4040).stdout
    assert ray_start(node_starts(again)[0])["port"] in taken


def test_ray_that_ends_early_ends_the_job_at_once(tmp_path: Path) -> None:
    slurm = Slurm(tmp_path, srun="exit 1\n", scontrol="echo node1\n", python="exec sleep 30\n")
    slurm.token()
    begun = time.monotonic()
    result = slurm.submit("shared", QUICKSTART, PROFILE)
    assert result.returncode == 1
    assert "error: Ray has ended on a node" in result.stderr
    assert time.monotonic() - begun < 15
    assert not [call for call in slurm.calls() if call.name == "ray-l4"]


def test_ray_ends_with_the_job(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    slurm = Slurm(
        tmp_path, srun=f'echo $$ >>"{pid}"; exec sleep 60\n', python=WAITS, scontrol="echo node1; echo node2\n"
    )
    slurm.token()
    assert slurm.submit("shared", QUICKSTART, PROFILE).returncode == 0
    started = [int(line) for line in pid.read_text().split()]
    assert len(started) == 2
    for process in started:
        assert _ends(process), f"process {process} is still running"


def _ends(process: int) -> bool:
    for _ in range(50):
        try:
            os.kill(process, signal.SIG_DFL)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


def test_waiting_for_nodes_has_a_limit_and_reports_the_number_found() -> None:
    command = [sys.executable, str(FOLDER / "wait_for_nodes.py"), "2", "0.2"]
    result = subprocess.run(
        command,
        env=os.environ | {"RAY_ADDRESS": "127.0.0.1:1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 1
    assert result.stderr == "error: 0 of 2 nodes have joined the Ray cluster at 127.0.0.1:1 within 0.2 s\n"
