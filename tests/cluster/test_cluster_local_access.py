"""A run on this machine: who can reach its processes and its files while it is at work."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from ray_l4.cluster import local_access
from ray_l4.cluster.temporary_folder import temporary_folder
from ray_l4.config.loading import dump_yaml
from tests.cli.background_command import BackgroundCommand
from tests.cluster.listening_sockets import address, listening, text_of
from tests.run.run_fixtures import cluster, long_enough

CLIENT = """
import sys
from ray._raylet import GcsClient
from ray.exceptions import AuthenticationError
for attempt in range(3):
    try:
        print("nodes:", len(GcsClient(address=sys.argv[1]).get_all_node_info(timeout=20)))
        break
    except AuthenticationError:
        raise
    except Exception as error:  # a busy machine answers late
        print(repr(error))
"""
"""Another program of this machine, which asks the cluster for its nodes."""


def answers(gcs: str, clients: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """What a client in each of these environments is told, all of them at the same time."""
    others = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    started = {
        name: subprocess.Popen(
            [sys.executable, "-c", CLIENT, gcs],
            env=others | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for name, environment in clients.items()
    }
    return {name: process.communicate(timeout=120)[0] for name, process in started.items()}


@pytest.mark.ray
@pytest.mark.end_to_end
def test_a_run_is_closed_to_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in (*local_access.TOKEN_VARIABLES, "RAY_AUTH_MODE"):
        monkeypatch.delenv(variable, raising=False)
    for variable in ("RAY_TMPDIR", "TMPDIR"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    run = tmp_path / "run"
    (tmp_path / "experiment.yaml").write_text(dump_yaml(long_enough()))
    profile = cluster("collective", ray={"num_cpus": 4, "object_store_memory": 200_000_000})
    (tmp_path / "profile.yaml").write_text(dump_yaml(profile))
    files = (tmp_path / "experiment.yaml", "--cluster", tmp_path / "profile.yaml", "--run-dir", run)
    background = BackgroundCommand(tmp_path.name, "run", *files)
    try:
        background.wait_until(lambda: any((run / "steps").glob("*.parquet")))
        processes = background.left()
        sockets = listening(processes)
        gcs = next(f"{host}:{port}" for title, host, port in sockets if title.endswith("gcs_server"))
        environments = [text_of(process, "environ") for process in processes if process != background.process.pid]
        variables = {line for text in environments for line in text.splitlines() if line.startswith("RAY_AUTH_")}
        token = next(line.partition("=")[2] for line in variables if line.startswith("RAY_AUTH_TOKEN="))
        told = answers(
            gcs,
            {
                "none": {"RAY_AUTH_MODE": "disabled"},
                "wrong": {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token[::-1]},
                "right": {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token},
            },
        )
        sessions = temporary_folder()[0] / "ray"
        folders = [each for each in sessions.glob("session_20*") if each.name.endswith(f"_{background.process.pid}")]
        commands = "".join(text_of(process, "cmdline") for process in processes)
        written = [file for root in (*folders, run) for file in root.rglob("*") if file.is_file()]
        holding = [str(file) for file in written if token.encode() in file.read_bytes()]
        modes = {str(folder): stat.S_IMODE(folder.stat().st_mode) for folder in (temporary_folder()[0], run)}
    finally:
        background.process.kill()
        background.process.communicate()
        background.wait_until_gone()
    assert {"gcs_server", "raylet"} <= {title.rpartition("/")[2] for title, *_ in sockets}
    assert any(title.startswith("ray::Student") for title, *_ in sockets) and len(sockets) >= 8
    assert [place for place in sockets if not place[1].is_loopback] == []
    assert "RAY_AUTH_MODE=token" in variables and len(token) == 64
    assert "nodes: 1" in told["right"], told
    assert "nodes:" not in told["none"] + told["wrong"], told
    assert all(re.search("InvalidAuthToken|Unauthenticated", told[name]) for name in ("none", "wrong")), told
    assert token not in commands and holding == []
    assert len(folders) == 1 and set(modes.values()) == {0o700}, modes


@pytest.mark.parametrize("variable", local_access.TOKEN_VARIABLES)
def test_a_token_of_the_user_is_kept(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    for name in local_access.TOKEN_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, "mine")
    local_access.draw_token()
    assert [os.environ.get(name) for name in local_access.TOKEN_VARIABLES if name in os.environ] == ["mine"]


def test_each_cluster_gets_another_token(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in local_access.TOKEN_VARIABLES:
        monkeypatch.setenv(name, "")
    tokens = []
    for _ in range(3):
        local_access.draw_token()
        tokens.append(os.environ[local_access.TOKEN_VARIABLE])
    assert len(set(tokens)) == 3 and min(map(len, tokens)) == 64


def test_the_address_is_that_of_other_nodes_again_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private import services

    for variable in ("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "GLOO_SOCKET_IFNAME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "eth7")  # what the user has set stays
    monkeypatch.setattr(services.ray_constants, "ENABLE_RAY_CLUSTER", True)
    with local_access.on_loopback():
        assert os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"
        assert (os.environ["GLOO_SOCKET_IFNAME"], os.environ["NCCL_SOCKET_IFNAME"]) == ("lo", "eth7")
        assert not services.ray_constants.ENABLE_RAY_CLUSTER
    assert not {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "GLOO_SOCKET_IFNAME"} & os.environ.keys()
    assert os.environ["NCCL_SOCKET_IFNAME"] == "eth7" and services.ray_constants.ENABLE_RAY_CLUSTER


def test_an_address_of_the_kernel_is_read() -> None:
    assert str(address("0100007F")) == str(address("0000000000000000FFFF00000100007F")) == "127.0.0.1"
    assert address("0" * 24 + "01000000").is_loopback and not address("0" * 32).is_loopback
