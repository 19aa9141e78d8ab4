"""The doctor's findings on this machine, and on machines that lack something."""

from __future__ import annotations

import os
import re
import tomllib
from collections import namedtuple
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement

from ray_l4.monitor import doctor
from ray_l4.monitor.doctor import Finding, examine

PROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"
Usage = namedtuple("Usage", "total used free")


def find(what: str, findings: list[Finding] | None = None) -> Finding:
    matching = [finding for finding in (findings or examine()) if finding.subject == what]
    assert len(matching) == 1, matching
    return matching[0]


def test_a_machine_that_runs_these_tests_lacks_nothing() -> None:
    lacking = [finding for finding in examine() if finding.needed and not finding.ok]
    assert lacking == []


def test_every_dependency_is_checked() -> None:
    project = tomllib.loads(PROJECT.read_text())["project"]
    needed = {Requirement(text).name for text in project["dependencies"]}
    found = {finding.subject: finding.found for finding in examine() if finding.needed}
    assert needed <= set(found)
    assert found["torch"] == version("torch")
    optional = {Requirement(text).name for texts in project["optional-dependencies"].values() for text in texts}
    assert optional - needed - {"ray-l4"} <= {finding.subject for finding in examine() if not finding.needed}


def test_failed_checks_and_only_those_have_a_remedy() -> None:
    for finding in examine():
        assert bool(finding.remedy) != finding.ok, finding


def without(monkeypatch: pytest.MonkeyPatch, **changes: str | None) -> None:
    """Pretend other versions of some packages; None for one that is not installed."""

    def other(name: str) -> str:
        if name in changes:
            if changes[name] is None:
                raise PackageNotFoundError(name)
            return str(changes[name])
        return version(name)

    monkeypatch.setattr(doctor, "version", other)


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, safetensors=None)
    finding = find("safetensors")
    assert (finding.found, finding.ok, finding.needed) == ("not installed", False, True)
    assert finding.remedy.startswith("pip install 'safetensors")
    assert "extra" not in finding.remedy


def test_the_command_keeps_the_extras_of_a_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """``ray`` without ``[default]`` would install, but lack half of it."""
    without(monkeypatch, ray=None)
    commands = [finding.remedy for finding in examine() if finding.subject == "ray" and finding.needed]
    assert len(commands) == 1
    assert commands[0].startswith("pip install 'ray[default,tune]")


@pytest.mark.parametrize(
    ("found", "ok"), [("0.0.1", False), ("99.0", False), ("2.11.0", True), ("2.13.0+cpu", True), ("2.12.0rc1", True)]
)
def test_versions_out_of_range_fail(monkeypatch: pytest.MonkeyPatch, found: str, ok: bool) -> None:
    without(monkeypatch, torch=found)
    finding = find("torch")
    assert (finding.found, finding.ok) == (found, ok)
    assert ("pip install 'torch" in finding.remedy) != ok


def test_a_missing_optional_package_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, hypothesis=None)
    finding = find("hypothesis")
    assert (finding.ok, finding.needed) == (False, False)
    assert 'extra == "dev"' in finding.remedy


def test_an_old_python_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find("Python").ok
    monkeypatch.setattr(doctor.sys, "version_info", (3, 10, 4))
    finding = find("Python")
    assert (finding.ok, finding.needed) == (False, True)
    assert "3.11" in finding.remedy


def test_one_core_is_a_note_and_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.os, "sched_getaffinity", lambda process: {0})
    finding = find("CPU cores")
    assert (finding.found, finding.ok, finding.needed) == ("1", False, False)
    assert "students.cpus" in finding.remedy
    monkeypatch.setattr(doctor.os, "sched_getaffinity", lambda process: {0, 1})
    assert find("CPU cores").ok


def test_memory_and_disk_have_a_minimum(monkeypatch: pytest.MonkeyPatch) -> None:
    pages = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 2**18}
    monkeypatch.setattr(doctor.os, "sysconf", pages.__getitem__)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: Usage(2**26, 0, 2**30))
    findings = examine()
    memory, disk, shared = (find(what, findings) for what in ("memory", "free disk here", "shared memory"))
    assert (memory.found, memory.ok, memory.needed) == ("1.0 GiB", False, True)
    assert (disk.found, disk.ok, disk.needed) == ("1.0 GiB", False, True)
    assert (shared.found, shared.ok, shared.needed) == ("0.1 GiB", False, False)
    assert "--shm-size" in shared.remedy


def test_gpus_are_named_and_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    none = find("GPUs")
    assert (none.found, none.ok, none.needed) == ("none", False, False)
    assert torch.__version__ in none.remedy
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"card {index}")
    assert (find("GPUs").found, find("GPUs").ok) == ("card 0, card 1", True)


def test_the_folder_of_raw_data_sets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RAY_L4_DATA", raising=False)
    assert (find("raw data sets").ok, find("raw data sets").needed) == (False, False)
    monkeypatch.setenv("RAY_L4_DATA", str(tmp_path))
    assert not find("raw data sets").ok, "a folder without raw/ in it is not one"
    (tmp_path / "raw").mkdir()
    assert (find("raw data sets").found, find("raw data sets").ok) == (str(tmp_path), True)


def test_the_checks_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = dict(os.environ)
    examine()
    assert list(tmp_path.iterdir()) == []
    assert dict(os.environ) == before


@pytest.mark.parametrize(
    ("variables", "mode", "found", "advice"),
    [
        ({}, None, "drawn for each run", ""),
        ({"RAY_AUTH_TOKEN": "secret"}, 0o644, "from the environment", ""),
        ({}, 0o600, "auth_token", ""),
        ({}, 0o640, "auth_token", "chmod 600 .*auth_token"),
        ({"RAY_AUTH_MODE": "disabled"}, 0o600, "off", "unset RAY_AUTH_MODE"),
    ],
)
def test_how_ray_is_protected(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    variables: dict[str, str],
    mode: int | None,
    found: str,
    advice: str,
) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    path = tmp_path / "auth_token"
    if mode is not None:
        path.touch()
        path.chmod(mode)
    for name, value in ({"RAY_AUTH_TOKEN_PATH": str(path)} | variables).items():
        monkeypatch.setenv(name, value)
    finding = find("Ray's token")
    assert finding.found.endswith(found) and "secret" not in finding.found
    assert re.search(advice, finding.remedy) and finding.ok == (not advice)
