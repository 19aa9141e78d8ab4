"""The files for ``ray up``, as Ray reads them, and the job submitted to such a cluster."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from ray_l4.errors import ClusterError
from tests.launch.launch_fixtures import (
    QUICKSTART,
    REPOSITORY,
    Commands,
    Run,
    ray_job_submit,
    ray_start,
    resolved,
    words_of,
)

TEXTS = {path.stem: path.read_text(encoding="utf-8") for path in sorted((REPOSITORY / "launch/ray-up").glob("*.yaml"))}
NODES_OF_HOSTS = [{"CPU": 4.0, "GPU": 0.0}, {"CPU": 4.0, "GPU": 1.0}, {"CPU": 4.0, "GPU": 1.0}]
"""The machines that the first lines of hosts.yaml require."""


@pytest.fixture(params=TEXTS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def cluster(name: str) -> dict[str, Any]:
    """The file with Ray's defaults filled in."""
    return prepare_config(yaml.safe_load(TEXTS[name]))


def starts_of(cluster: dict[str, Any], kind: str) -> dict[str, object]:
    """Return the parsed ``ray start`` command of the head or the workers."""
    (command,) = [line for line in cluster[f"{kind}_start_ray_commands"] if "ray start" in line]
    assert "RAY_AUTH_MODE=token ray start " in command
    return ray_start(words_of(command.split("ray start ")[1]))


def nodes_of(cluster: dict[str, Any]) -> list[dict[str, float]]:
    if cluster["provider"]["type"] == "local":
        return NODES_OF_HOSTS
    types = cluster["available_node_types"]
    counts = {kind: 1 if kind == cluster["head_node_type"] else spec["min_workers"] for kind, spec in types.items()}
    return [dict(types[kind]["resources"]) for kind, count in counts.items() for _ in range(count)]


def test_ray_accepts_the_file(cluster: dict[str, Any]) -> None:
    validate_config(cluster)


def test_ray_refuses_a_key_that_it_does_not_know(name: str) -> None:
    with pytest.raises(jsonschema.ValidationError, match="'workers' was unexpected"):
        validate_config(prepare_config(yaml.safe_load(TEXTS[name]) | {"workers": 2}))


def test_the_token_is_copied_and_the_dashboard_listens_on_the_loopback_address(cluster: dict[str, Any]) -> None:
    tokens = [there for there, here in cluster["file_mounts"].items() if here == "~/.ray/auth_token"]
    assert [Path(there).parts[-2:] for there in tokens] == [(".ray", "auth_token")]
    head, worker = starts_of(cluster, "head"), starts_of(cluster, "worker")
    assert (head["head"], head["dashboard_host"], head["port"]) == (True, "127.0.0.1", 6379)
    assert worker["address"] == "$RAY_HEAD_IP:6379"


def test_the_copied_files_exist_and_suffice_to_install(cluster: dict[str, Any]) -> None:
    mounts = {there: here for there, here in cluster["file_mounts"].items() if not here.startswith("~")}
    assert all((REPOSITORY / here).exists() for here in mounts.values())
    assert all(there.endswith(f"/ray-l4/{here}") for there, here in mounts.items())
    metadata = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    assert {"ray_l4", "pyproject.toml", *re.findall(r'"(README.md|LICENSE)"', metadata)} <= set(mounts.values())


def test_the_number_of_machines_is_fixed(cluster: dict[str, Any]) -> None:
    workers = [spec for spec in cluster["available_node_types"].values() if spec["max_workers"]]
    assert [spec["min_workers"] for spec in workers] == [spec["max_workers"] for spec in workers] == [2]


def test_all_images_have_one_version_of_ray() -> None:
    versions = {
        version
        for path in [REPOSITORY / "launch/ray-up/aws.yaml", REPOSITORY / "launch/kuberay/Dockerfile"]
        for version in re.findall(r"rayproject/ray:([\d.]+)-py311", path.read_text(encoding="utf-8"))
    }
    assert len(versions) == 1


def test_the_job_in_the_comment_resolves_and_has_room(name: str, cluster: dict[str, Any], tmp_path: Path) -> None:
    script, _, profile = re.findall(r"^#   (launch/job\.sh) (\S+) (\S+)$", TEXTS[name], re.MULTILINE)[0]
    run = submitted(tmp_path, script, profile)
    there = nodes_of(cluster)
    assert run.cluster.ray.address == "auto"
    assert len(set(run.fits(there))) == len([node for node in there if node.get("GPU") or node.get("cpu_node")])
    with pytest.raises(ClusterError):
        run.fits(there[:-1])


def submitted(folder: Path, script: str, profile: str) -> Run:
    """Return the run that a submitted job resolves to on the cluster."""
    here = Commands(folder)
    here.token()
    result = here.run("bash", REPOSITORY / script, REPOSITORY / QUICKSTART, REPOSITORY / profile)
    assert result.returncode == 0, result.stderr
    job, submit, *arguments = here.only_call("ray").arguments
    assert (job, submit) == ("job", "submit")
    sent = ray_job_submit(arguments)
    assert sent["working_dir"] == str(REPOSITORY)
    assert here.run("bash", "-c", 'cd "$0"; exec "$@"', REPOSITORY, *sent["entrypoint"]).returncode == 0
    return resolved(here.only_call("ray-l4"))
