"""A run on this machine: who can reach its processes and its files while it is at work."""

from __future__ import annotations

import ipaddress
import os
import stat
from pathlib import Path

import pytest

from ray_l4.cluster import local_access
from ray_l4.cluster.temporary_folder import temporary_folder
from ray_l4.config.loading import dump_yaml
from tests.cli.background_command import BackgroundCommand
from tests.run.run_fixtures import cluster, long_enough

LISTENS = {"tcp": "0A", "tcp6": "0A", "udp": "07", "udp6": "07"}
"""State of a socket that accepts connections or packets of anyone, by table of the kernel."""


def address(hexadecimal: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """An address of /proc/net: words of four bytes, each in the machine's order."""
    raw = bytes.fromhex(hexadecimal)
    found = ipaddress.ip_address(b"".join(raw[at : at + 4][::-1] for at in range(0, len(raw), 4)))
    return getattr(found, "ipv4_mapped", None) or found


def listening() -> dict[str, tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int]]:
    """Address and port of every socket on this machine that listens, by what /proc/PID/fd calls it."""
    found = {}
    for table, state in LISTENS.items():
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == state:
                host, _, port = fields[1].partition(":")
                found[f"socket:[{fields[9]}]"] = (address(host), int(port, 16))
    return found


def open_files(process: int) -> set[str]:
    try:
        return {str(entry.readlink()) for entry in Path(f"/proc/{process}/fd").iterdir()}
    except OSError:  # it has just ended
        return set()


def text_of(process: int, name: str) -> str:
    try:
        return Path(f"/proc/{process}/{name}").read_bytes().replace(b"\0", b"\n").decode(errors="replace")
    except OSError:
        return ""


@pytest.mark.ray
@pytest.mark.end_to_end
@pytest.mark.parametrize("transport", ["collective"])
def test_a_run_is_closed_to_others(tmp_path: Path, transport: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in (*local_access.TOKEN_VARIABLES, "RAY_AUTH_MODE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    run = tmp_path / "run"
    (tmp_path / "experiment.yaml").write_text(dump_yaml(long_enough()))
    profile = cluster(transport, ray={"num_cpus": 4, "object_store_memory": 200_000_000})
    (tmp_path / "profile.yaml").write_text(dump_yaml(profile))
    background = BackgroundCommand(
        tmp_path.name, "run", tmp_path / "experiment.yaml", "--cluster", tmp_path / "profile.yaml", "--run-dir", run
    )
    try:
        background.wait_until(lambda: any((run / "steps").glob("*.parquet")))
        sockets, processes = listening(), background.left()
        titles = "".join(text_of(process, "cmdline").partition("\n")[0] + "\n" for process in processes)
        ours = {file: sockets[file] for process in processes for file in open_files(process) if file in sockets}
        environments = [text_of(process, "environ") for process in processes if process != background.process.pid]
        tokens = {line for text in environments for line in text.splitlines() if line.startswith("RAY_AUTH_")}
        token = next(line.partition("=")[2] for line in tokens if line.startswith("RAY_AUTH_TOKEN="))
        sessions = temporary_folder()[0] / "ray"
        folders = [each for each in sessions.glob("session_20*") if each.name.endswith(f"_{background.process.pid}")]
        commands = "".join(text_of(process, "cmdline") for process in processes)
        written = [file for root in (*folders, run, tmp_path) for file in root.rglob("*") if file.is_file()]
        holding = [str(file) for file in written if token.encode() in file.read_bytes()]
        modes = {str(folder): stat.S_IMODE(folder.stat().st_mode) for folder in (*folders, run)}
    finally:
        background.process.kill()
        background.process.communicate()
        background.wait_until_gone()
    assert "raylet" in titles and "Student" in titles and "gcs_server" in titles
    assert len(ours) >= 8
    assert [place for place in ours.values() if not place[0].is_loopback] == []
    assert "RAY_AUTH_MODE=token" in tokens and len(token) == 64
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

    monkeypatch.delenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", raising=False)
    monkeypatch.setattr(services.ray_constants, "ENABLE_RAY_CLUSTER", True)
    with local_access.on_loopback():
        assert os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"
        assert not services.ray_constants.ENABLE_RAY_CLUSTER
    assert "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER" not in os.environ and services.ray_constants.ENABLE_RAY_CLUSTER


def test_an_address_of_the_kernel_is_read() -> None:
    assert str(address("0100007F")) == str(address("0000000000000000FFFF00000100007F")) == "127.0.0.1"
    assert address("0" * 24 + "01000000").is_loopback and not address("0" * 32).is_loopback
