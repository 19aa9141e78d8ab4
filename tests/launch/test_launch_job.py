"""``launch/job.sh`` and ``launch/run_or_resume.sh``: the commands they call, the input they refuse, exit codes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.launch.launch_fixtures import QUICKSTART, REPOSITORY, Commands, ray_job_submit, resolved

JOB = REPOSITORY / "launch" / "job.sh"
RUN = REPOSITORY / "launch" / "run_or_resume.sh"
EXPERIMENT = REPOSITORY / QUICKSTART
PROFILE = REPOSITORY / "cluster_configs" / "several_nodes.yaml"


@pytest.fixture
def commands(tmp_path: Path) -> Commands:
    return Commands(
        tmp_path,
        ray='exit "${RAY_ENDS_WITH:-0}"\n',
        python='case $2 in check) exit "${CHECK_ENDS_WITH:-0}" ;; exit-code) echo "${JOB_ENDED_WITH:-}" ;; esac\n',
    )


def sent(commands: Commands) -> dict[str, object]:
    call = commands.only_call("ray")
    assert call.auth == "token"
    assert call.arguments[:2] == ["job", "submit"]
    return ray_job_submit(call.arguments[2:])


# --- job.sh ---


def test_a_job_uploads_the_repository_and_waits(commands: Commands) -> None:
    commands.token()
    result = commands.run("bash", JOB, EXPERIMENT, PROFILE, "--set", "name=a b")
    assert result.returncode == 0, result.stderr
    job = sent(commands)
    assert (job["address"], job["working_dir"], job["no_wait"]) == ("http://127.0.0.1:8265", str(REPOSITORY), False)
    folder = f"~/ray-l4-runs/{job['submission_id']}"
    assert list(job["entrypoint"]) == [
        *("env", "bash", "launch/run_or_resume.sh", folder, QUICKSTART),
        *("--cluster", "cluster_configs/several_nodes.yaml", "--set", "cluster.ray.address=auto", "--set", "name=a b"),
    ]
    assert f"==> job {job['submission_id']} at http://127.0.0.1:8265\n" in result.stdout
    assert f"==> done: {folder}" in result.stdout


def test_paths_on_the_cluster_come_from_the_environment(commands: Commands) -> None:
    result = commands.run(
        *("bash", JOB, EXPERIMENT, PROFILE),
        RAY_API_SERVER_ADDRESS="http://127.0.0.1:9000",
        RAY_AUTH_TOKEN="0" * 64,
        RAY_L4_RUN_DIR="/disk/run",
        RAY_L4_CLUSTER_VENV="/opt/venv",
        RAY_L4_CLUSTER_DATA="/disk/data",
    )
    assert result.returncode == 0, result.stderr
    job = sent(commands)
    assert job["address"] == "http://127.0.0.1:9000"
    settings = ["env", "RAY_L4_VENV=/opt/venv", "RAY_L4_DATA=/disk/data"]
    assert list(job["entrypoint"])[:6] == [*settings, "bash", "launch/run_or_resume.sh", "/disk/run"]


def test_a_job_that_fails_fails_here(commands: Commands) -> None:
    commands.token()
    result = commands.run("bash", JOB, EXPERIMENT, PROFILE, RAY_ENDS_WITH="3")
    assert result.returncode == 3
    assert "done" not in result.stdout


@pytest.mark.parametrize(
    ("job_ended_with", "code"), [("6", 6), ("2", 2), ("7", 7), ("130", 130), ("-15", 143), ("", 1), ("no number", 1)]
)
def test_the_exit_code_is_that_of_the_run(commands: Commands, job_ended_with: str, code: int) -> None:
    """Ray's own command returns 1 for every job that fails."""
    commands.token()
    result = commands.run("bash", JOB, EXPERIMENT, PROFILE, RAY_ENDS_WITH="1", JOB_ENDED_WITH=job_ended_with)
    assert result.returncode == code
    assert f"error: the run failed with exit code {code}: ~/ray-l4-runs/ray-l4-" in result.stderr
    asked = [call.arguments[1:] for call in commands.calls() if call.name == "python"][-1]
    assert asked[:2] == ["exit-code", "http://127.0.0.1:8265"] and asked[2].startswith("ray-l4-")


def test_nothing_is_submitted_to_a_cluster_that_cannot_be_used(commands: Commands) -> None:
    commands.token()
    assert commands.run("bash", JOB, EXPERIMENT, PROFILE, CHECK_ENDS_WITH="6").returncode == 6
    assert [call.name for call in commands.calls()] == ["python"]


def test_without_a_token_nothing_is_submitted(commands: Commands) -> None:
    for variables in ({}, {"RAY_AUTH_TOKEN_PATH": "/no/such/file"}):
        result = commands.run("bash", JOB, EXPERIMENT, PROFILE, **variables)
        assert result.returncode == 1
        assert "error: no token. Save the cluster's token" in result.stderr
    assert commands.calls() == []


def test_files_outside_the_repository_are_refused(commands: Commands, tmp_path: Path) -> None:
    commands.token()
    (tmp_path / "mine.yaml").write_text("name: mine\n")
    for profile, message in [("mine.yaml", "is not in"), ("missing.yaml", "no such file")]:
        result = commands.run("bash", JOB, EXPERIMENT, tmp_path / profile)
        assert result.returncode == 2, "as ray-l4 itself"
        assert f"error: {tmp_path / profile}" in result.stderr
        assert message in result.stderr
    assert commands.calls() == []


def test_help_and_wrong_use(commands: Commands) -> None:
    shown = commands.run("bash", JOB, "--help")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout.startswith("usage: launch/job.sh EXPERIMENT.yaml PROFILE.yaml")
    wrong = commands.run("bash", JOB, EXPERIMENT)
    assert (wrong.returncode, wrong.stderr) == (2, shown.stdout)


# --- run_or_resume.sh ---


def test_a_new_folder_is_a_new_run(commands: Commands, tmp_path: Path) -> None:
    options = ["--cluster", "cluster_configs/several_nodes.yaml", "--set", "seed=7"]
    assert commands.run("bash", RUN, tmp_path / "run", QUICKSTART, *options).returncode == 0
    run = resolved(commands.only_call("ray-l4"))
    assert (run.folder, run.experiment.seed, run.cluster.name) == (str(tmp_path / "run"), 7, "several_nodes")


def test_a_run_in_the_folder_is_resumed(commands: Commands, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").touch()
    assert commands.run("bash", RUN, tmp_path / "run", QUICKSTART, "--set", "seed=7").returncode == 0
    assert commands.only_call("ray-l4").arguments == ["resume", "--supervise", str(tmp_path / "run")]


def test_a_run_that_has_finished_is_left_alone(commands: Commands, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").touch()
    (tmp_path / "run" / "summary.json").touch()
    assert commands.run("bash", RUN, tmp_path / "run", QUICKSTART).returncode == 0
    assert commands.only_call("ray-l4").arguments[0] == "resume", "its report is missing"
    (tmp_path / "run" / "report.md").touch()
    result = commands.run("bash", RUN, tmp_path / "run", QUICKSTART)
    assert (result.returncode, commands.calls()) == (0, [])
    assert "this run has already finished" in result.stdout


def test_the_tilde_is_expanded_on_the_machine_that_runs(commands: Commands, tmp_path: Path) -> None:
    assert commands.run("bash", RUN, "~/runs/a", QUICKSTART).returncode == 0
    assert commands.only_call("ray-l4").after("--run-dir")[0] == str(tmp_path / "home/runs/a")


def test_a_run_directory_alone_is_not_enough(commands: Commands) -> None:
    result = commands.run("bash", RUN, "runs/a")
    assert (result.returncode, commands.calls()) == (2, [])
    assert result.stderr.startswith("usage: launch/run_or_resume.sh RUN_DIR EXPERIMENT.yaml")
